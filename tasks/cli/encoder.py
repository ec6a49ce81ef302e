"""`vitrine encoder list`, `show` and `adopt`: the encoders there are, and one of them as a version, without training."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from tasks.cli.output import console
from tasks.errors import VitrineError

app = typer.Typer(help="Encoders: what there is, and adopting one as it is.", no_args_is_help=True)
NAME = (
    "a preset, a recipe file (.toml), MODEL:TAG, hf-hub:organisation/name, local-dir:folder, timm:MODEL, or a package of weights"
)


@app.command("list")
def list_encoders() -> None:
    """List the presets: network, vector dimension, picture size, parameters, and the licence and source of the weights."""
    from tasks.encoder.presets import PRESETS, PRETRAINED

    known = {p.name: p for p in PRETRAINED}
    table = Table(show_edge=False)
    for column in ("preset", "teacher", "student", "dim", "pixels", "M parameters", "licence", "source"):
        table.add_column(column, overflow="fold")
    for name, make in PRESETS.items():
        config, published = make(), known.get(name)
        about = (f"{published.parameters:g}", published.licence, published.source) if published else ("", "", "trained here")
        pixels = f"{config.preprocess.size} {config.preprocess.fit}"
        table.add_row(name, str(config.teacher), str(config.student), str(config.dim), pixels, *about)
    console.print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help=NAME)]) -> None:
    """Show the whole configuration that a name stands for, as TOML that a recipe file may begin with."""
    from tasks.encoder.lookup import find_encoder

    values = find_encoder(name).as_dict()
    tables = {k: v for k, v in values.items() if isinstance(v, dict)}
    for key, value in values.items():
        if key not in tables:
            console.print(f"{key} = {_toml(value)}", markup=False)
    for key, table in tables.items():
        _print_table(key, table)


@app.command()
def adopt(
    name: Annotated[str, typer.Argument(help=NAME)],
    student: Annotated[str, typer.Option(help="a timm model to distil for queries, from the catalogue's own pictures")] = "none",
    epochs: Annotated[
        float | None,
        typer.Option(min=0, help="passes over the pictures that the student is distilled from; default: the preset's steps"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="also where the same encoder was adopted before")] = False,
) -> None:
    """Export, check, quantise, evaluate and register a pretrained encoder as it is; champion where it passes every gate."""
    from tasks.pipelines import common, preconditions
    from tasks.pipelines import train_encoder as pipeline

    key = f"adopt.{datetime.now(UTC):%Y%m%dT%H%M%S}"
    preconditions.check_preconditions(training=False)
    snapshot = common.snapshot(key)
    wanted = {"preset": name, "training": "none", "student": student, "epochs": epochs, "force": force}
    plan = pipeline.plan(snapshot, wanted, key)
    version = plan["existing"]
    if version:
        console.print(f"{plan['preset']} is encoder version {version} already; it is judged again (--force exports it anew)")
    else:
        teacher = pipeline.teacher(snapshot, plan, key)
        console.print(f"{plan['preset']}: {teacher['parameters'] / 1e6:.1f}M parameters loaded; exporting and measuring")
        version = pipeline.export(snapshot, plan, teacher, pipeline.student(snapshot, plan, teacher, key), key)
    decision = pipeline.judge(snapshot, version, key)
    console.print(decision["summary"])
    if decision["failed"]:
        raise VitrineError(f"encoder version {version} is registered as challenger; it does not become champion")
    if decision["promote"]:
        promoted = pipeline.promote(decision, key)
        state = "champion" if promoted["promoted"] else f"not champion: {promoted['summary']}"
        console.print(f"encoder version {version} is {state}; the next rebuild_index embeds the catalogue with the champion")


def _print_table(name: str, table: dict) -> None:
    console.print(f"\n[{name}]", markup=False)
    for key, value in table.items():
        if not isinstance(value, dict):
            console.print(f"{key} = {_toml(value)}", markup=False)
    for key, value in table.items():
        if isinstance(value, dict):
            _print_table(f"{name}.{key}", value)


def _toml(value: object) -> str:
    """A plain value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
