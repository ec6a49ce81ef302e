"""What MLflow shows of an index version: the few figures that a person compares versions by, and the version's page.

All other figures are in gates.json and tuning.json beside the manifest.
"""

from collections.abc import Mapping, Sequence

from serving.contract.manifest import Gate
from tasks.queries.query_words import SYNTHETIC, describe
from tasks.registry import INDEX_PATH, Registry
from tasks.registry.version_page import version_page
from tasks.release.gates.index_gates import Measurements


def headline_metrics(measured: Measurements) -> dict[str, float]:
    """Metrics of the version's run."""
    figures = {
        "exact_recall": measured.exact_recall_at_10, "p50_ms": measured.p50_ms, "p99_ms": measured.p99_ms,
        "memory_mb": measured.memory_mb, "servable": float(measured.counts.servable),
        "quarantined_products": float(measured.counts.quarantined),
    }  # fmt: skip
    return figures | ({"recall_at_1": measured.recall_at_1, "recall_at_10": measured.recall_at_10} if measured.photos else {})


def _asked(measured: Measurements) -> str:
    """The kind of queries and how many: "held-out photos (296)"."""
    queries = measured.queries
    if queries is None or queries.kind == "photos":
        return f"held-out photos ({measured.photos:,})"
    return f"{SYNTHETIC} ({measured.photos:,})" if queries.kind == "synthetic" else describe(queries)


def index_page(
    models: Registry,
    run_id: str,
    summary: str,
    measured: Measurements,
    gates: Sequence[Gate],
    links: Mapping[str, str] | None = None,
) -> str:
    """The version's description in Markdown; `links` are further artifacts of its run by name."""
    counts = measured.counts
    figures = {
        f"Recall@1 of {_asked(measured)}": f"{measured.recall_at_1:.3f}",
        f"Recall@10 of {_asked(measured)}": f"{measured.recall_at_10:.3f}",
        "recall@10 against exact search": f"{measured.exact_recall_at_10:.3f}",
        f"one photo, bytes to answer, {measured.clients} at once: median, p99": f"{measured.p50_ms:.1f} ms, {measured.p99_ms:.1f} ms",
        "memory in a replica": f"{measured.memory_mb:.1f} MiB",
        "products": f"{counts.servable:,} can be found, {counts.quarantined:,} in quarantine{counts.of_pictures}{counts.set_aside}",
        "rows in deltas": f"{measured.delta_share:.1%}",
    }  # fmt: skip
    artifacts = {"Gates with reasons": f"{INDEX_PATH}/gates.json", "Manifest": f"{INDEX_PATH}/manifest.json"} | dict(links or {})
    urls = {name: models.artifact_url(run_id, path) for name, path in artifacts.items()}
    return version_page(summary, figures, gates, urls)
