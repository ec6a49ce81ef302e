"""`vitrine webhook`: register MLflow's webhooks with Airflow (champion moved) or replicas (any alias moved)."""

from typing import Annotated

import typer

from tasks.cli.output import AsJson, console, open_registry, print_json
from tasks.errors import SettingsError
from tasks.settings import Settings


def webhook(
    airflow: Annotated[
        str, typer.Option(help="Airflow's address as seen from the MLflow server; default: the setting VITRINE_AIRFLOW_URL")
    ] = "",
    replica: Annotated[
        list[str] | None, typer.Option(help="a replica's address as seen from the MLflow server; repeatable")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register MLflow's signed webhook with Airflow for a new champion; with --replica, with replicas for all moved aliases."""
    from tasks.registry.webhook import AIRFLOW, REPLICA, register_webhook

    chosen = Settings.load()
    if not chosen.webhook_secret:
        who = "replicas" if replica else "Airflow"
        raise SettingsError(f"VITRINE_WEBHOOK_SECRET is not set: give {who} and this command the same long random text")
    registry, receiver, what = (
        open_registry(),
        *((REPLICA, "an alias moves") if replica else (AIRFLOW, "an encoder becomes champion")),
    )
    registered = []
    for address in replica or [airflow or chosen.airflow_url]:
        url = address.rstrip("/") + receiver.path
        registered.append({"url": url, "new": register_webhook(registry, address, chosen.webhook_secret, receiver)})
        if not as_json:
            console.print(f"MLflow {'tells' if registered[-1]['new'] else 'still tells'} {url} when {what}")
    if as_json:
        print_json(registered)
