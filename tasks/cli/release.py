"""`vitrine release`: what is live, taking it away in a folder, and going back."""

from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.output import console, open_registry
from tasks.settings import Settings

app = typer.Typer(help="What is live, and going back.", no_args_is_help=True)


@app.command("show")
def show() -> None:
    """What every replica serves and holds."""
    from tasks.steps.promoting import replicas_of

    for replica in replicas_of(Settings.load()):
        state = replica.version()
        live = f"version {state['live']['version']} ({state['live']['slot']})" if state["live"] else "nothing"
        slots = ", ".join(f"{n}: {s['version'] or '-'} {s['state']} {s['reason']}".strip() for n, s in state["slots"].items())
        console.print(f"{replica.url}  live: {live}; {slots}")


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="where to write it; a replica serves it with VITRINE_RELEASE=<folder>")],
    version: Annotated[str, typer.Option(help="an index version; default: live")] = "",
) -> None:
    """Write an index version with everything it needs into a folder that a replica can serve without MLflow."""
    from tasks.release.export import export_release

    made = export_release(open_registry(), folder, version)
    console.print(f"index version {made} in {folder}; serve it with VITRINE_RELEASE={folder} vitrine-serve")


@app.command("rollback")
def roll_back() -> None:
    """Go back to the version that was live before."""
    from tasks.release.promotion import rollback
    from tasks.steps.promoting import LIMIT_S, replicas_of

    chosen = Settings.load()
    plan, took = rollback(open_registry(), replicas_of(chosen), LIMIT_S)
    console.print(f"version {plan.version} is live again in {plan.slot} (was: version {plan.live}), after {took:.1f} s")
