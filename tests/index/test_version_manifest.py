"""The manifest of a version accounts for every row of its catalogue."""

from serving.contract.files import FileRef
from serving.contract.manifest import EncoderRef
from tasks.catalog.changes import ledger
from tasks.catalog.snapshot import Snapshot
from tasks.embed.job import EmbedResult
from tasks.index.delta_version import counts
from tasks.index.version_manifest import draft_manifest

FILE = FileRef(path="encoder.json", sha256="a" * 64, bytes=1)
ENCODER = EncoderRef(
    name="tiny", version="1", run_id="e", manifest=FILE, document="student.fp32", document_fingerprint="d" * 64, query="student.int8",
    query_fingerprint="q" * 64, dim=16,
)  # fmt: skip


def test_the_catalogues_rows_are_its_products_and_those_set_aside_also_in_later_versions() -> None:
    snapshot = Snapshot("s", "/snapshots/s", 97, 0, "c" * 64, "shop", "", quarantined_rows=3)
    embedded = EmbedResult("r", "/v", "/e", "/q", 16, 1, 97, 0, 97, 0, 0, {"missing": 97})
    made = draft_manifest(
        name="r", created_at="2026-11-24T00:00:00+00:00", encoder=ENCODER, snapshot=snapshot, segments=[], search={"family": "flat"},
        ranker={}, embedded=embedded, shards=1, key="k",
    )  # fmt: skip
    hour = counts(made, made.segments, ledger.SCHEMA.empty_table())
    for found in (made.counts, hour):
        assert found.catalogue + (found.quarantined_rows or 0) == 100
        assert found.catalogue == found.embedded + found.quarantined == 97
    assert made.counts.set_aside == "; 3 more rows of the snapshot's source cannot be used"
    assert made.counts.model_copy(update={"quarantined_rows": None}).set_aside == "", "manifests of before do not count them"
