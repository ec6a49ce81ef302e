"""`python -m tasks.demo demo|up|down`: implements `make demo`, `make up` and `make down`."""

import dataclasses
import os
import secrets
import signal
import sqlite3
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from serving.contract.addresses import without_secrets
from serving.contract.files import ContractError
from tasks.errors import VitrineError
from tasks.home_file import write_home_file
from tasks.masking import mask
from tasks.settings import Settings
from tasks.worker_disk import CACHE

if TYPE_CHECKING:
    from tasks.demo.supervisor import Supervisor

WRITTEN = (
    "catalog", "mlflow_uri", "airflow_url", "airflow_user", "airflow_password", "serving_urls", "admin_token", "webhook_secret",
)  # fmt: skip
"""Settings that the home's file names whatever they are: where the services of this home are, and how to be let in."""


def main(arguments: list[str]) -> int:
    """Runs one of the three commands; returns its exit status."""
    warnings.simplefilter("ignore")
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    command = arguments[0] if arguments else "demo"
    try:
        if command == "down":
            return down(Settings.load().home, console)
        if command not in ("demo", "up"):
            raise VitrineError(f"{command!r} is not one of demo, up, down")
        settings = demo_settings(os.environ.get("CATALOG", ""), os.environ.get("ENGINE", ""))
        succeeded = run(settings, console)
        if command == "up":
            stay(settings, console)
        return 0 if succeeded else 1
    except VitrineError as error:
        print_failure(error, console)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130


def demo_settings(catalog: str, engine: str = "") -> Settings:
    """Settings of this demo: the folder in CATALOG, the engine in ENGINE, and this home's secrets, generated once.

    Of what the last demo wrote below the home only the secrets are taken over.
    """
    settings, before = Settings.load(home_file=False), Settings.load()
    if catalog:
        folder = Path(catalog).expanduser().resolve()
        if not folder.is_dir():
            raise VitrineError(f"CATALOG={catalog}: there is no such folder; a database is named by VITRINE_CATALOG")
        settings = dataclasses.replace(settings, catalog=str(folder))
    return dataclasses.replace(
        settings,
        engine=engine or settings.engine,
        airflow_password=before.airflow_password or secrets.token_urlsafe(24),
        admin_token=before.admin_token or secrets.token_urlsafe(24),
        webhook_secret=before.webhook_secret or secrets.token_urlsafe(24),
    )


def run(settings: Settings, console: Console) -> bool:
    """Catalogue, services, the chain of DAGs, and answers to held-out photos; returns whether all succeeded.

    What can be seen to be wrong before is said before any service starts, and raises VitrineError; so does a service that does not
    start, and those that were started now are stopped again. Once all are up they stay up, whatever the chain does.
    """
    from tasks.demo.supervisor import Supervisor

    began = time.monotonic()
    console.rule("[bold]Vitrine[/] demo", align="left")
    prepare_catalog(settings, console)
    check(settings, console)
    settings = with_engine(settings, Supervisor(settings.home), console)
    start_services(settings, Supervisor(settings.home), console)
    try:
        make_live(settings, console)
    except (VitrineError, ContractError) as error:
        print_failure(error, console)
        print_access(settings, console, f"failed after {time.monotonic() - began:.0f} s. The services are up, until `make down`:")
        return False
    except BaseException:
        print_access(settings, console, "The services are up, until `make down`:")
        raise
    print_access(settings, console, f"done in {time.monotonic() - began:.0f} s. Still running, until `make down`:")
    console.print("  try          .venv/bin/vitrine search <photo.jpg>")
    return True


def with_engine(settings: Settings, supervisor: "Supervisor", console: Console) -> Settings:
    """The settings with the address of their engine, which is started unless they name one."""
    from tasks.demo.engine import start_engine

    with console.status(f"waiting for {settings.engine}"):
        address = start_engine(settings, supervisor, console.print)
    if address:
        console.print(f"  [green]✓[/] {settings.engine:<10} {escape(mask('engine_address', address))}")
    return dataclasses.replace(settings, engine_address=address)


def make_live(settings: Settings, console: Console) -> None:
    """Runs and follows the chain of DAGs, then shows the replica's answers."""
    from tasks.demo.chain import run_chain
    from tasks.demo.show import show_answers
    from tasks.registry import Registry
    from tasks.registry.webhook import register_webhook

    register_webhook(Registry(settings.mlflow_uri, settings.home / CACHE), settings.airflow_url, settings.webhook_secret)
    run_chain(settings, console)
    show_answers(settings, console)


def start_services(settings: Settings, supervisor: "Supervisor", console: Console) -> None:
    """Starts missing services, waits until all respond, and stores the settings for commands run beside them.

    Raises VitrineError when one does not start; those that were started here are stopped then.
    """
    from tasks.demo.services import all_services

    services = all_services(settings)
    started: list[str] = []
    try:
        for service in services:
            if supervisor.start(service):
                started.append(service.name)
        if started:
            console.print(f"starting {', '.join(started)} (about a minute; logs in {supervisor.logs})")
        if running := [s.name for s in services if s.name not in started]:
            console.print(f"already running: {', '.join(running)}")
        write_home_file(settings, WRITTEN)
        for service in services:
            with console.status(f"waiting for {service.name}"):
                supervisor.wait(service)
            console.print(f"  [green]✓[/] {service.name:<10} {_origin(service.health)}")
    except BaseException:
        for name in started:
            supervisor.stop(name)
            console.print(f"stopped {name} again")
        raise


def print_access(settings: Settings, console: Console, heading: str) -> None:
    """Prints URLs and credentials."""
    console.rule(align="left")
    console.print(heading)
    console.print(f"  search page  {settings.serving_urls[0]}/")
    console.print(
        f"  Airflow      {settings.airflow_url}   user {settings.airflow_user}, password {escape(settings.airflow_password)}"
    )
    console.print(f"  MLflow       {without_secrets(settings.mlflow_uri)}")


def print_failure(error: Exception, console: Console) -> None:
    """Prints why the demo stops."""
    console.print(f"[bold red]stopped:[/] {escape(str(error))}")


def prepare_catalog(settings: Settings, console: Console) -> None:
    """Generates and loads the sample catalogue once, unless the settings name another."""
    from tasks.catalog.load import load_folder
    from tasks.catalog.sample.catalog import SampleConfig, draw_sample

    if settings.catalog:
        console.print(f"catalogue: {mask('catalog', settings.catalog_uri)}")
        return
    folder, database = settings.home / "catalog" / "sample", settings.home / "catalog" / "catalog.db"
    if _holds_products(database):
        console.print(f"catalogue: the sample of the last run, {database}")
        return
    with console.status("drawing the sample catalogue (generated test data)"):
        sample = draw_sample(SampleConfig(), folder)
        load_folder(folder, settings.catalog_uri)
    console.print(f"catalogue: {sample.products} products and {sample.photos} photos, drawn by code as test data, in {database}")


def _holds_products(database: Path) -> bool:
    """Whether a SQLite file was loaded completely."""
    if not database.is_file():
        return False
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'products'").fetchone())


def check(settings: Settings, console: Console) -> None:
    """Raises CatalogError listing everything that would stop a later step."""
    from tasks.validate.preconditions import check_preconditions

    with console.status("looking at the catalogue") as status:
        notes = check_preconditions(
            settings, lambda n, all_: status.update(f"looking at the catalogue's pictures: {n} of {all_}")
        )
    for note in notes:
        console.print(f"  {escape(note)}")


def stay(settings: Settings, console: Console) -> None:
    """Waits for Ctrl-C or SIGTERM, then stops everything."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.print("up; Ctrl-C stops everything")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        down(settings.home, console)


def down(home: Path, console: Console) -> int:
    """Stops all services started from this home."""
    from tasks.demo.engine import stop_engine
    from tasks.demo.supervisor import Supervisor

    supervisor = Supervisor(home)
    names = supervisor.running()
    for name in names:
        supervisor.stop(name)
        console.print(f"stopped {name}")
    if stop_engine(home):
        names.append("pgvector")
        console.print("stopped pgvector")
    if not names:
        console.print("nothing is running that was started from here")
    return 0


def _origin(url: str) -> str:
    return "/".join(url.split("/")[:3])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
