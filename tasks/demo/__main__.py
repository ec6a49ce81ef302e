"""`python -m tasks.demo demo|up|down`: what `make demo`, `make up` and `make down` run."""

import dataclasses
import os
import signal
import sys
import time
import warnings
from pathlib import Path

from rich.console import Console

from tasks.errors import VitrineError
from tasks.settings import Settings


def main(arguments: list[str]) -> int:
    """Runs one of the three commands and gives its exit status."""
    warnings.simplefilter("ignore")
    console = Console(highlight=False, soft_wrap=True)
    command = arguments[0] if arguments else "demo"
    try:
        settings = demo_settings(Settings.load(), os.environ.get("CATALOG", ""))
        if command == "down":
            return down(settings, console)
        if command not in ("demo", "up"):
            raise VitrineError(f"{command!r} is not one of demo, up, down")
        run(settings, console)
        if command == "up":
            stay(settings, console)
        return 0
    except VitrineError as error:
        console.print(f"[bold red]stopped:[/] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; what was started goes on in the background: make down stops it")
        return 130


def demo_settings(settings: Settings, catalog: str) -> Settings:
    """The settings of this demo: the folder named by CATALOG, and secrets made for this home."""
    from tasks.demo.services import secret

    if catalog:
        folder = Path(catalog).expanduser().resolve()
        if not folder.is_dir():
            raise VitrineError(f"CATALOG={catalog}: there is no such folder")
        settings = dataclasses.replace(settings, catalog=str(folder))
    return dataclasses.replace(
        settings,
        airflow_password=settings.airflow_password or secret(settings.home / "airflow" / "admin.password"),
        admin_token=settings.admin_token or secret(settings.home / "serving" / "admin.token"),
        webhook_secret=settings.webhook_secret or secret(settings.home / "airflow" / "webhook.secret"),
    )


def run(settings: Settings, console: Console) -> None:
    """Catalogue, services, the chain of DAGs, and the answers to held-out photos."""
    from tasks.demo.chain import run_chain
    from tasks.demo.services import Supervisor, all_services
    from tasks.demo.show import show_answers
    from tasks.registry import Registry
    from tasks.webhook import register_webhook

    began = time.monotonic()
    console.rule("[bold]Vitrine[/] demo", align="left")
    supervisor = Supervisor(settings.home)
    services = all_services(settings)
    started = [s.name for s in services if supervisor.start(s)]
    running = [s.name for s in services if s.name not in started]
    if started:
        console.print(f"starting {', '.join(started)} (about a minute; logs in {supervisor.logs})")
    if running:
        console.print(f"already running: {', '.join(running)}")
    prepare_catalog(settings, console)
    for service in services:
        with console.status(f"waiting for {service.name}"):
            supervisor.wait(service)
        console.print(f"  [green]✓[/] {service.name:<10} {_origin(service.health)}")
    register_webhook(Registry(settings.mlflow_uri, settings.home / "cache"), settings.airflow_url, settings.webhook_secret)
    run_chain(settings, console)
    show_answers(settings, console)
    console.rule(align="left")
    console.print(f"done in {time.monotonic() - began:.0f} s. Still running, until `make down`:")
    console.print(f"  search page  {settings.serving_urls[0]}/")
    console.print(f"  Airflow      {settings.airflow_url}   user {settings.airflow_user}, password {settings.airflow_password}")
    console.print(f"  MLflow       {settings.mlflow_uri}")
    console.print("  try          .venv/bin/vitrine search <photo.jpg>")


def prepare_catalog(settings: Settings, console: Console) -> None:
    """The sample catalogue, drawn and loaded once, unless the settings name another."""
    from tasks.catalog.load import load_folder
    from tasks.catalog.sample import SampleConfig, draw_sample

    if settings.catalog:
        console.print(f"catalogue: {settings.catalog_uri}")
        return
    folder, database = settings.home / "catalog" / "sample", settings.home / "catalog" / "catalog.db"
    if database.is_file():
        console.print(f"catalogue: the sample of the last run, {database}")
        return
    with console.status("drawing the sample catalogue (generated test data)"):
        sample = draw_sample(SampleConfig(), folder)
        load_folder(folder, settings.catalog_uri)
    console.print(f"catalogue: {sample.products} products and {sample.photos} photos, drawn by code as test data, in {database}")


def stay(settings: Settings, console: Console) -> None:
    """Waits for Ctrl-C (or SIGTERM), then stops everything."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.print("up; Ctrl-C stops everything")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        down(settings, console)


def down(settings: Settings, console: Console) -> int:
    """Stops what was started from this home."""
    from tasks.demo.services import Supervisor

    supervisor = Supervisor(settings.home)
    names = supervisor.running()
    for name in names:
        supervisor.stop(name)
        console.print(f"stopped {name}")
    if not names:
        console.print("nothing is running that was started from here")
    return 0


def _origin(url: str) -> str:
    return "/".join(url.split("/")[:3])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
