"""What the board says of versions, lineage and replicas, from plain records."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from serving.contract.counts import Counts
from serving.contract.files import FileRef
from serving.contract.manifest import EncoderRef, Gate, IndexManifest, Segment, SnapshotRef
from tasks.board.lineage import lineage
from tasks.board.replicas import replica_lines
from tasks.board.timeline import LoadedVersion, series, timeline
from tasks.registry import INDEX_MODEL, Registry, Version
from tasks.release.gates.recorded_verdict import verdict, why_not_promotable

FILE = FileRef(path="index/a", sha256="a" * 64, bytes=10, run_id="run")
PAGES = cast(
    Registry,
    SimpleNamespace(
        version_url=lambda model, version: f"http://mlflow/{model}/{version}",
        run_url=lambda run: f"http://mlflow/{run}",
        artifact_url=lambda run, path: f"http://mlflow/{run}/{path}",
    ),
)


def gate(name: str = "p99_ms", value: float = 20.0, threshold: float = 200.0) -> Gate:
    return Gate(name=name, value=value, threshold=threshold, passed=value <= threshold, reason=f"{value} against {threshold}")


def manifest(*gates: Gate, deltas: int = 0, run: str = "run") -> IndexManifest:
    base = Segment(kind="base", shard=0, sequence=0, rows=90, index=FILE, table=FILE)
    made = FILE.model_copy(update={"run_id": run})
    segments = (base, *(Segment(kind="delta", shard=0, sequence=n + 1, rows=10, index=made, table=made) for n in range(deltas)))
    return IndexManifest(
        id="rebuild_index.x", created_at="2026-11-24T00:00:00+00:00", shards=1, segments=segments, search={"family": "flat"},
        encoder=EncoderRef(
            name="tiny", version="3", run_id="e", manifest=FILE, document="student.fp32", document_fingerprint="d" * 64,
            query="student.int8", query_fingerprint="q" * 64, dim=16,
        ),
        snapshot=SnapshotRef(id="snap", uri="/snapshots/snap", rows=100, content_sha256="c" * 64),
        counts=Counts(catalogue=100, embedded=98, quarantined=2, indexed=98, servable=98), golden=FILE, gates=gates,
    )  # fmt: skip


def version(number: str, *aliases: str, **tags: str) -> Version:
    return Version(INDEX_MODEL, number, "run", tags, aliases, "98 products\n\nMade by [a](b)", 1000)


PASSED, FAILED = manifest(gate()), manifest(gate(), gate(value=300.0))


@pytest.mark.parametrize(
    ("found", "read", "status", "may"),
    [
        (version("1", "live", "blue"), PASSED, "live", False),
        (version("2", "candidate", verdict="passed"), PASSED, "candidate", True),
        (version("3", "previous", "green"), PASSED, "previous", True),
        (version("4", "candidate"), FAILED, "failed", False),
        (version("5", "candidate", verdict="failed: p99_ms"), PASSED, "failed", False),
        (version("6"), PASSED, "kept", True),
        (version("7"), manifest(), "kept", False),
        (version("10", superseded="by version 11, before it was live", verdict="passed"), PASSED, "superseded", True),
        (version("12", superseded="by version 13, before it was live", live_at="1.0"), PASSED, "kept", True),
        (version("8", "candidate"), None, "broken", False),
        (version("9", "live"), None, "live", False),
    ],
)
def test_what_a_version_is_and_whether_it_may_be_promoted(
    found: Version, read: IndexManifest | None, status: str, may: bool
) -> None:
    entry = timeline([LoadedVersion(found, read, "" if read else "its manifest cannot be fetched")], PAGES)[0]
    assert (entry.status, entry.may_promote) == (status, may)
    assert entry.description == "98 products"


def test_a_refusal_names_the_gate_with_its_figures() -> None:
    assert why_not_promotable(version("4"), FAILED) == "index version 4 did not pass its gates: p99_ms: 300.0 against 200.0"
    assert "live already" in why_not_promotable(version("1", "live"), PASSED)
    assert "never judged" in why_not_promotable(version("7"), manifest())
    assert why_not_promotable(version("6"), PASSED) == ""


def test_the_registrys_verdict_counts_before_the_manifests_gates() -> None:
    assert verdict(version("1", verdict="failed: shadow"), PASSED) == "failed"
    assert verdict(version("1"), None) == ""


def test_a_delta_shows_its_share_and_its_links() -> None:
    entry = timeline(
        [LoadedVersion(version("2", **{"airflow.url": "http://airflow/dags/x"}), manifest(gate(), deltas=2))], PAGES
    )[0]
    assert entry.delta_share == pytest.approx(20 / 110)
    assert entry.links == {
        "Model version": "http://mlflow/product-index/2",
        "MLflow run": "http://mlflow/run",
        "Data docs": "http://mlflow/run/data_docs",
        "DAG run": "http://airflow/dags/x",
    }


def test_a_series_goes_from_old_to_new_and_leaves_out_what_was_not_measured() -> None:
    made = [
        LoadedVersion(version("3", "live"), PASSED),
        LoadedVersion(version("2"), manifest()),
        LoadedVersion(version("1"), manifest(gate(value=300.0))),
    ]
    points = series(timeline(made, PAGES), "p99_ms")
    assert [(p["version"], p["passed"], p["live"]) for p in points] == [("1", False, False), ("3", True, True)]


def test_a_limit_of_nothing_is_no_line_in_a_chart() -> None:
    """The first version has no live one to be compared with: its gate passes at 0."""
    made = [LoadedVersion(version(str(n)), manifest(gate("photo_recall", 0.9, t))) for n, t in ((2, 0.88), (1, 0.0))]
    assert [p["threshold"] for p in series(timeline(made, PAGES), "photo_recall")] == [None, 0.88]


def test_a_version_that_was_withdrawn_says_what_was_seen_once_it_was_live() -> None:
    told = "failed: after it went live, p99 470 ms (at most 200)"
    entries = timeline(
        [LoadedVersion(version("3", "previous", verdict=told), PASSED), LoadedVersion(version("2"), FAILED)], PAGES
    )
    assert [(e.status, e.withdrawn) for e in entries] == [("failed", told), ("failed", "")]


def test_lineage_goes_from_the_answer_to_the_catalogue() -> None:
    steps = lineage(version("2"), manifest(gate(), deltas=1, run="earlier"), PAGES)
    assert [s.what for s in steps] == [
        "answer",
        "index version",
        "segments",
        "vectors",
        "encoder version",
        "snapshot",
        "catalogue",
    ]
    assert "1 base segment, 1 delta segment, over 1 shard; built by this run and 1 earlier run" in steps[2].name
    assert steps[4].url == "http://mlflow/product-encoder/3"
    assert "98 servable, 2 in quarantine" in steps[6].name


def told(live: str, **slots: dict[str, Any]) -> dict[str, Any]:
    return {"live": {"version": live, "slot": "blue"} if live else None, "slots": slots, "error": ""}


def slot(number: str, state: str = "ready", reason: str = "") -> dict[str, Any]:
    return {"version": number, "state": state, "reason": reason, "since": "", "products": 9}


def test_replicas_that_do_not_follow_are_told_with_their_reason() -> None:
    lines = replica_lines(
        [
            ("http://a", told("2", blue=slot("2"), green=slot("1"))),
            ("http://b", told("1", blue=slot("1"))),
            ("http://c", told("2", blue=slot("2"), green=slot("3", "failed", "checksum differs"))),
            ("http://d", "no answer (ConnectError)"),
            ("http://e", told("")),
        ],
        live="2",
    )
    assert [line.problem for line in lines] == [
        "",
        "serves version 1, live is version 2",
        "green could not load version 3: checksum differs",
        "no answer (ConnectError)",
        "serves nothing, live is version 2",
    ]
    assert [s.live for s in lines[0].slots] == [True, False]
    assert not lines[3].answers
