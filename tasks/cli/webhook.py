"""`vitrine webhook`: MLflow tells Airflow when somebody moves the champion."""

from typing import Annotated

import typer

from tasks.cli.output import console, open_registry
from tasks.errors import SettingsError
from tasks.settings import Settings


def webhook(
    airflow: Annotated[
        str, typer.Option(help="where MLflow's server reaches Airflow; default: the setting VITRINE_AIRFLOW_URL")
    ] = "",
) -> None:
    """Have MLflow tell Airflow, signed, when an encoder becomes champion: then every product is embedded again."""
    from tasks.webhook import PATH, register_webhook

    chosen = Settings.load()
    if not chosen.webhook_secret:
        raise SettingsError("VITRINE_WEBHOOK_SECRET is not set: give Airflow and this command the same long random text")
    url = airflow or chosen.airflow_url
    new = register_webhook(open_registry(), url, chosen.webhook_secret)
    console.print(f"MLflow {'tells' if new else 'still tells'} {url.rstrip('/')}{PATH} when an encoder becomes champion")
