"""`vitrine release`: inspect, export, promote and roll back index versions."""

import getpass
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from tasks.cli import trace, versions
from tasks.cli.output import console, find_version, open_registry, version_number

app = typer.Typer(help="Promote, roll back and inspect releases.", no_args_is_help=True)
app.command("list")(versions.list_versions)
app.command("show")(versions.show)
app.command("diff")(versions.diff)
app.command("garbage")(versions.garbage)
app.command("trace")(trace.trace)


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="target folder; a replica serves it with VITRINE_RELEASE=<folder>")],
    version: Annotated[str, typer.Option(help="an index version, by number or alias; default: live")] = "",
) -> None:
    """Export an index version as a self-contained folder that a replica serves without MLflow."""
    from tasks.release.export import export_release

    registry = open_registry()
    made = export_release(registry, folder, find_version(registry, version).version)
    console.print(f"index version {made} in {folder}; serve it with VITRINE_RELEASE={folder} vitrine-serve")


@app.command("promote")
def promote(
    version: Annotated[str, typer.Argument(help="an index version, by number or alias; default: the candidate")] = "",
    bake_s: Annotated[
        float | None,
        typer.Option("--bake", min=0, help="seconds to monitor it after the flip; default: the setting VITRINE_BAKE_S"),
    ] = None,
) -> None:
    """Promote a version that passed its gates: warm, shadow check, flip, bake; the same as the DAG promote_index."""
    from tasks.pipelines import promote_index

    console.print(promote_index.promote(version_number(version), _who("promote"), bake_s).summary)


@app.command("rollback")
def roll_back(
    to: Annotated[str, typer.Option(help="the version to make live, by number or alias; default: the previous one")] = "",
) -> None:
    """Roll back to the previous version; a running promotion becomes void."""
    from tasks.pipelines import rollback_index

    console.print(rollback_index.roll_back(_who("rollback"), version_number(to)).summary)


def _who(command: str) -> str:
    """Identifies this call to others waiting for the lease."""
    return f"vitrine release {command} ({getpass.getuser()} on {socket.gethostname()}, process {os.getpid()})"
