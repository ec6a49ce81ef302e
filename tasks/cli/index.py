"""`vitrine index`: the index versions in the registry."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.status import Status
from rich.text import Text

from serving.contract.files import ContractError, FileRef
from tasks.cli.output import AsJson, console, find_version, open_registry, print_json, print_table, progress
from tasks.errors import VitrineError
from tasks.settings import Settings
from tasks.worker_disk import WORK

if TYPE_CHECKING:
    from serving.contract.manifest import IndexManifest

app = typer.Typer(help="Index versions in the registry.", no_args_is_help=True)


@app.command("list")
def list_versions(as_json: AsJson = False) -> None:
    """List index versions: aliases, encoder, products and gate verdict."""
    from tasks.registry import INDEX_MODEL

    versions = open_registry().versions(INDEX_MODEL)
    if as_json:
        print_json(versions)
        return
    shown = ("encoder_version", "products", "verdict", "snapshot")
    rows = [(v.version, ", ".join(v.aliases), *(v.tags.get(name, "") for name in shown)) for v in versions]
    print_table(("version", "aliases", "encoder", "products", "gates", "made from"), rows, right=("products",))


Chosen = Annotated[str, typer.Argument(help="an index version, by number or alias; default: live")]


@app.command("check")
def check(version: Chosen = "", as_json: AsJson = False) -> None:
    """Download a version anew and verify all of it: files, segments, keys, counts, products, encoder, answers."""
    from tasks.index.verify_version import check_index

    work = Settings.load().home / WORK
    work.mkdir(parents=True, exist_ok=True)
    # Nothing that this machine fetched before: what is checked is what the registry has. A dot: garbage of a killed check.
    with tempfile.TemporaryDirectory(prefix="check.", dir=work) as folder, progress.status("fetching the manifest") as status:
        models = open_registry(Path(folder))
        found = find_version(models, version)
        manifest = models.index_manifest(found.version)
        fetch, version_number = _fetching(models, manifest, status), manifest.encoder.version
        done = check_index(manifest, fetch, lambda: models.encoder_folder(version_number), models.endpoint)
    broken = ", ".join(one.name for one in done if one.passed is False)
    unknown = ", ".join(one.name for one in done if one.passed is None)
    verdict = f"broken: {broken}" if broken else f"all else holds, not checked: {unknown}" if unknown else "every check holds"
    if as_json:
        print_json({"version": found.version, "holds": not broken, "verdict": verdict, "checks": done})
    else:
        print_table(("check", "", "result"), [(one.name, VERDICTS[one.passed], one.detail) for one in done])
        console.print(f"index version {found.version}: {verdict}")
    if broken:
        raise typer.Exit(1)


VERDICTS = {True: Text("holds", "green"), False: Text("BROKEN", "bold red"), None: Text("not checked", "yellow")}


def _fetching(models: Any, manifest: "IndexManifest", status: Status) -> Callable[[FileRef], Path]:
    """Locates the version's files, fetching each on first use; shows progress on `status`."""
    files = {ref.sha256: ref for ref in (*manifest.files(), *manifest.changes)}
    total, fetched = sum(ref.bytes for ref in files.values()), [0, 0]

    @cache
    def locate(ref: FileRef) -> Path:
        status.update(
            f"fetching {ref.path}, file {fetched[0] + 1} of {len(files)}; {_mib(fetched[1])} of {_mib(total)} MiB fetched"
        )
        path = models.file(ref)
        fetched[:] = fetched[0] + 1, fetched[1] + ref.bytes
        status.update(f"checking {_mib(fetched[1])} MiB")
        return Path(path)

    return locate


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


@app.command("tuning")
def tuning(
    version: Chosen = "",
    plot: Annotated[Path | None, typer.Option(help="write the plot of recall against time to this PNG")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the tuning trials of a version: parameters, recall, latency and verdict, and why its family was chosen."""
    import json

    from tasks.index.tune import TuningResult
    from tasks.index.tuning_report import queries_of, tuning_plot
    from tasks.registry import INDEX_PATH

    models = open_registry()
    found = find_version(models, version)
    run_id = next(s.table.run_id for s in models.index_manifest(found.version).segments if s.kind == "base")
    try:
        path = models.fetch(run_id, f"{INDEX_PATH}/tuning.json", models.cache / "tuning" / run_id)
    except ContractError:
        raise VitrineError(f"no tuning report is kept of index version {found.version}: its run has no tuning.json") from None
    tuned = TuningResult(**json.loads(path.read_text()))
    if plot is not None:
        tuning_plot(tuned, plot, Settings.load().recall_target)
        progress.print(f"plot in {plot}", soft_wrap=True)
    if as_json:
        print_json(tuned)
        return
    rows = []
    for t in tuned.trials:
        params = ", ".join(f"{n} {v}" for n, v in t["params"].items())
        figures = [
            str(t.get("queries", tuned.queries)),
            f"{t['recall_at_10']:.3f}",
            f"{t['within_candidates']:.3f}",
            f"{t['p50_ms']:.2f}",
            f"{t['p99_ms']:.2f}",
            f"{t['qps']:.0f}",
        ]
        rows.append((params, *figures, "yes" if t["pareto"] else "", t["verdict"]))
    title = f"{tuned.search['family']}, {queries_of(tuned)}, {tuned.clients} at a time"
    print_table(TUNING_COLUMNS, rows, right=TUNING_COLUMNS[1:7], title=title)
    for name, why in tuned.families.items():
        console.print(f"{name:<16} {why}")


TUNING_COLUMNS = ("parameters", "queries", "recall@10", "in candidates", "p50 ms", "p99 ms", "QPS", "Pareto", "verdict")
