"""Credentials of a task's process: from connections of Airflow where settings name them, and masked in its log."""

import os


def read_connections() -> None:
    """Replaces airflow://conn_id in the VITRINE_ variables of this process by what the connections hold. Airflow masks their passwords.

    A connection that does not exist fails the task without retries.
    """
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

    from tasks.connections import resolve_connections
    from tasks.errors import SettingsError

    try:
        resolve_connections(os.environ, Connection.get)
    except (AirflowNotFoundException, SettingsError) as error:
        raise AirflowFailException(f"a setting names a connection that cannot be used: {error}") from None


def mask_secrets() -> None:
    """Registers the secrets of the settings with Airflow, which masks them in the task's log, also in tracebacks."""
    from airflow.sdk.log import mask_secret

    from tasks.masking import secret_values
    from tasks.settings import Settings

    for secret in secret_values(Settings.load()):
        mask_secret(secret)
