"""`vitrine release`: inspect, export, promote and roll back index versions."""

import getpass
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from tasks.cli import trace, versions
from tasks.cli.output import AsJson, find_version, open_registry, print_answer, version_number
from tasks.settings import Settings
from tasks.worker_disk import CACHE

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
    as_json: AsJson = False,
) -> None:
    """Export an index version as a self-contained folder that a replica serves without MLflow."""
    from tasks.release.export import export_release

    registry = open_registry()
    made = export_release(registry, folder, find_version(registry, version).version)
    sentence = f"index version {made} in {folder}; serve it with VITRINE_RELEASE={folder} vitrine-serve"
    print_answer({"version": made, "folder": folder}, sentence, as_json)


@app.command("bind")
def bind(
    version: Annotated[
        str, typer.Argument(help="an index version, by number or alias; default: every version of both models")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Bind versions of before to the manifests they have now, and sign them where VITRINE_SIGNING_KEY is set.

    Whatever lies in the artifact store is believed from then on: check what you do not know with `vitrine index check` first.
    """
    from tasks.registry import ENCODER_MODEL, Registry
    from tasks.registry.binding import signing_key
    from tasks.release.bind import bind_versions, versions_to_bind

    chosen = Settings.load()
    key = signing_key(chosen)
    registry = Registry(chosen.mlflow_uri, chosen.home / CACHE, chosen.mlflow_page)  # reads what is not bound yet
    if version:
        found = find_version(registry, version)
        versions = [registry.version(ENCODER_MODEL, registry.manifest_of(found).encoder.version), found]
    else:
        versions = versions_to_bind(registry)
    done = bind_versions(registry, versions, key)
    state = "bound to its manifest and signed" if key else "bound to its manifest"
    print_answer(done, "\n".join(done) or f"nothing to do: every version is {state}", as_json)


@app.command("promote")
def promote(
    version: Annotated[str, typer.Argument(help="an index version, by number or alias; default: the candidate")] = "",
    bake_s: Annotated[
        float | None,
        typer.Option("--bake", min=0, help="seconds to monitor it after the flip; default: the setting VITRINE_BAKE_S"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Promote a version that passed its gates: warm, shadow check, flip, bake; the same as the DAG promote_index."""
    from tasks.pipelines import promote_index

    done = promote_index.promote(version_number(version), _who("promote"), bake_s)
    print_answer(done, done.summary, as_json)


@app.command("rollback")
def roll_back(
    to: Annotated[str, typer.Option(help="the version to make live, by number or alias; default: the previous one")] = "",
    as_json: AsJson = False,
) -> None:
    """Roll back to the previous version; a running promotion becomes void."""
    from tasks.pipelines import rollback_index

    done = rollback_index.roll_back(_who("rollback"), version_number(to))
    print_answer(done, done.summary, as_json)


def _who(command: str) -> str:
    """Identifies this call to others waiting for the lease."""
    return f"vitrine release {command} ({getpass.getuser()} on {socket.gethostname()}, process {os.getpid()})"
