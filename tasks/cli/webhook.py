"""`vitrine webhook`: register MLflow's webhooks with Airflow (champion moved) or replicas (any alias moved)."""

from typing import Annotated

import typer

from tasks.cli.output import console, open_registry
from tasks.errors import SettingsError
from tasks.settings import Settings


def webhook(
    airflow: Annotated[
        str, typer.Option(help="Airflow's address as seen from the MLflow server; default: the setting VITRINE_AIRFLOW_URL")
    ] = "",
    replica: Annotated[
        list[str] | None, typer.Option(help="a replica's address as seen from the MLflow server; repeatable")
    ] = None,
) -> None:
    """Register MLflow's signed webhook with Airflow for a new champion; with --replica, with replicas for all moved aliases."""
    from tasks.registry.webhook import AIRFLOW, REPLICA, register_webhook

    chosen = Settings.load()
    if not chosen.webhook_secret:
        who = "replicas" if replica else "Airflow"
        raise SettingsError(f"VITRINE_WEBHOOK_SECRET is not set: give {who} and this command the same long random text")
    for address in replica or []:
        new = register_webhook(open_registry(), address, chosen.webhook_secret, REPLICA)
        console.print(f"MLflow {'tells' if new else 'still tells'} {address.rstrip('/')}{REPLICA.path} when an alias moves")
    if replica:
        return
    url = airflow or chosen.airflow_url
    new = register_webhook(open_registry(), url, chosen.webhook_secret)
    console.print(f"MLflow {'tells' if new else 'still tells'} {url.rstrip('/')}{AIRFLOW.path} when an encoder becomes champion")
