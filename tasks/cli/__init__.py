"""`vitrine`: the command line for catalogue, changes, encoders, search, index versions and releases."""

import sys
from collections.abc import Mapping
from typing import NoReturn

import typer
from rich.markup import escape

from serving.versions.version_source import limit_mlflow_timeouts
from tasks.cli import capacity, catalog, changes, encoder, index, release, search, settings, stream, trace, webhook
from tasks.cli.failure import sentence_of
from tasks.cli.output import console, print_json
from tasks.connections import SCHEME, named_connections
from tasks.errors import SettingsError

app = typer.Typer(help="Visual product search: catalogue, index versions, releases.", no_args_is_help=True, add_completion=False)
app.command()(search.search)
app.command()(trace.trace)
app.command()(capacity.capacity)
app.command()(settings.settings)
app.command()(webhook.webhook)
app.command()(stream.stream)
app.add_typer(catalog.app, name="catalog")
app.add_typer(changes.app, name="changes")
app.add_typer(encoder.app, name="encoder")
app.add_typer(index.app, name="index")
app.add_typer(release.app, name="release")


def main() -> None:
    """Runs the command; expected errors print one sentence instead of a traceback."""
    import os
    import warnings

    warnings.simplefilter("ignore")
    # What MLflow's client says beside a command's own words.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    limit_mlflow_timeouts()
    try:
        _refuse_connections(os.environ)
        app()
    except Exception as error:
        if not (sentence := sentence_of(error)):
            raise
        _fail(sentence)


def _refuse_connections(environ: Mapping[str, str]) -> None:
    """Raises SettingsError for a setting whose value only Airflow can read."""
    for name, conn_id in named_connections(environ).items():
        raise SettingsError(
            f"{name}={SCHEME}{conn_id} names a connection of Airflow, which its tasks and pages alone can read: give the value itself here"
        )


def _fail(sentence: str) -> NoReturn:
    """Ends the process with one sentence, as JSON where JSON was asked for."""
    if "--json" in sys.argv:
        print_json({"error": sentence})
    else:
        console.print(f"[bold red]vitrine:[/] {escape(sentence)}")
    sys.exit(1)
