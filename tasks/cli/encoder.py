"""`vitrine encoder`: the encoders there are, one of them as a version, what embedding with it costs, and a version for a server."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from tasks.cli.output import AsJson, console, open_registry, print_answer, print_json, print_table, progress
from tasks.errors import VitrineError


class Server(StrEnum):
    """An encoder server, as VITRINE_ENCODER_SERVER names it."""

    TRITON = "triton"
    TORCHSERVE = "torchserve"


COLUMNS = ("preset", "teacher", "student", "dim", "pixels", "M parameters", "licence", "source")

app = typer.Typer(help="Encoders: what there is, adopting one as it is, and what embedding with one costs.", no_args_is_help=True)
NAME = (
    "a preset, a recipe file (.toml), MODEL:TAG, hf-hub:organisation/name, local-dir:folder, timm:MODEL, or a package of weights"
)


@app.command("list")
def list_encoders(as_json: AsJson = False) -> None:
    """List the presets: network, vector dimension, picture size, parameters, and the licence and source of the weights."""
    from tasks.encoder.presets import PRESETS, PRETRAINED

    known = {p.name: p for p in PRETRAINED}
    records = []
    for name, make in PRESETS.items():
        config, published = make(), known.get(name)
        about = (f"{published.parameters:g}", published.licence, published.source) if published else ("", "", "trained here")
        pixels = f"{config.preprocess.size} {config.preprocess.fit}"
        values = (name, str(config.teacher), str(config.student), str(config.dim), pixels, *about)
        records.append(dict(zip(COLUMNS, values, strict=True)))
    if as_json:
        print_json(records)
    else:
        print_table(COLUMNS, [list(r.values()) for r in records])


@app.command()
def show(name: Annotated[str, typer.Argument(help=NAME)], as_json: AsJson = False) -> None:
    """Show the whole configuration that a name stands for, as TOML that a recipe file may begin with."""
    from tasks.encoder.lookup import find_encoder

    values = find_encoder(name).as_dict()
    if as_json:
        print_json(values)
        return
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
    as_json: AsJson = False,
) -> None:
    """Export, check, quantise, evaluate and register a pretrained encoder as it is; champion where it passes every gate."""
    from tasks.pipelines import common, preconditions, train_encoder

    key = f"adopt.{datetime.now(UTC):%Y%m%dT%H%M%S}"
    preconditions.check_preconditions(training=False)
    snapshot = common.take_snapshot(key)
    wanted = {"preset": name, "training": "none", "student": student, "epochs": epochs, "force": force}
    plan = train_encoder.plan(snapshot, wanted, key)
    version = plan.existing
    if version:
        progress.print(f"{plan.preset} is encoder version {version} already; it is judged again (--force exports it anew)")
    else:
        teacher = train_encoder.train_teacher(snapshot, plan, key)
        progress.print(f"{plan.preset}: {teacher.parameters / 1e6:.1f}M parameters loaded; exporting and measuring")
        distilled = train_encoder.distil_student(snapshot, plan, teacher, key)
        version = train_encoder.export_encoder(snapshot, plan, teacher, distilled, key)
    decision = train_encoder.judge(snapshot, plan, version, key)
    progress.print(decision.summary, markup=False)
    if decision.failed:
        raise VitrineError(
            f"encoder version {version} is registered as challenger; it does not become champion: {decision.summary}"
        )
    moved = train_encoder.promote_champion(decision, key) if decision.promote else None
    champion = moved is not None and moved.promoted
    reason = decision.summary if moved is None else moved.summary
    state = "champion; the next rebuild_index embeds the catalogue with it" if champion else f"not champion: {reason}"
    print_answer({"version": version, "champion": champion, "summary": reason}, f"encoder version {version} is {state}", as_json)


@app.command()
def plan(
    version: Annotated[str, typer.Argument(help="an encoder version, by number or alias")] = "champion",
    as_json: AsJson = False,
) -> None:
    """Tell what embedding the catalogue with an encoder version will cost: pictures, hours, money, bytes. Nothing is stored."""
    from tasks.catalog.snapshot import read_snapshot
    from tasks.pipelines import common, plan_reembedding
    from tasks.registry import ENCODER_MODEL, INDEX_MODEL

    models, key = common.registry(), f"plan.{datetime.now(UTC):%Y%m%dT%H%M%S}"
    encoder = models.encoder_ref(models.resolve(ENCODER_MODEL, version).version)
    live = models.alias(INDEX_MODEL, "live")
    uri = models.index_manifest(live.version).snapshot.uri if live else ""
    snapshot = read_snapshot(uri) if uri else common.take_snapshot(key)
    made = plan_reembedding.reembedding_plan(snapshot, encoder, key)
    print_answer(made.to_json(), made.summary, as_json)


@app.command()
def repository(
    version: Annotated[str, typer.Argument(help="an encoder version, by number or alias")],
    folder: Annotated[Path, typer.Argument(help="where it is written; what is there of other versions stays")],
    server: Annotated[Server, typer.Option(help="the server that will hold it")] = Server.TRITON,
    variant: Annotated[str, typer.Option(help="the tower.variant; default: the one that encodes photos")] = "",
    max_batch: Annotated[int, typer.Option(min=1, help="most pictures in a batch")] = 16,
    delay_us: Annotated[int, typer.Option(min=0, help="microseconds to wait for a fuller batch")] = 500,
    instances: Annotated[int, typer.Option(min=1, help="instances of the model")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="threads of ONNX Runtime in an instance, where Python runs it")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="on NVIDIA GPUs")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an encoder version for a server: Triton's model repositories, or a model archive for TorchServe's model store."""
    from serving.contract.encoder import EncoderFolder
    from tasks.encoder.servers.model import Batching
    from tasks.encoder.servers.torchserve import write_archive
    from tasks.encoder.servers.triton import write_repository
    from tasks.registry import ENCODER_MODEL

    registry = open_registry()
    encoders = EncoderFolder(registry.encoder_folder(registry.resolve(ENCODER_MODEL, version).version))
    triton, store = quote(f"{folder}/onnxruntime"), quote(str(folder))
    write, serve = {
        Server.TRITON: (write_repository, f"tritonserver --model-repository {triton}"),
        Server.TORCHSERVE: (write_archive, f"torchserve --start --ncs --model-store {store} --models all --disable-token-auth"),
    }[server]
    model = write(encoders, folder, Batching(max_batch, delay_us, instances, threads, gpu), variant)
    sentence = f"model {model} in {folder}; serve it with {serve}"
    print_answer({"model": model, "folder": folder}, sentence, as_json)


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
