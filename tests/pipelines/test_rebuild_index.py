"""The steps of rebuild_index over a real registry."""

import dataclasses
from pathlib import Path

import pytest

from tasks.catalog.snapshot import read_snapshot
from tasks.errors import GateFailed
from tasks.pipelines import rebuild_index
from tasks.registry import INDEX_MODEL
from tests.catalog.changes.refreshed import LiveShop, empty_mlflow, own_mlflow

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_tuning_leaves_its_report_whether_it_chooses_or_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, empty_mlflow(tmp_path / "empty.db")), monkeypatch)
    manifest = live.registry.index_manifest(live.base)
    snapshot, encoder = dataclasses.asdict(read_snapshot(manifest.snapshot.uri)), manifest.encoder.model_dump()
    embedded = {"vectors_uri": str(tmp_path / "work" / "made-1" / "vectors")}

    def tuned(run_key: str, **settings: str) -> dict:
        template = rebuild_index.template(encoder, embedded, run_key)
        shards = [rebuild_index.shard(n, snapshot, embedded, template, run_key) for n in rebuild_index.shard_numbers(template)]
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        return rebuild_index.tune(snapshot, encoder, template, shards, run_key)

    def report(run_key: str) -> str:
        with live.registry.run(rebuild_index.EXPERIMENT, run_key, run_key) as run:
            assert {"tuning/tuning.md", "tuning/tuning.png"} <= set(dict(live.registry.artifacts(run.run_id, "tuning")))
            return live.registry.fetch(run.run_id, "tuning/tuning.md", tmp_path / "fetched" / run_key).read_text()

    assert tuned("chooses")["search"]["family"] == "flat"
    assert "chosen: the least work" in report("chooses")
    assert "| hnsw_fp16 | needs 256 training vectors and there are 60; " in report("chooses"), "every family says why"
    with pytest.raises(GateFailed, match="no other family is known to keep to the budget: raise VITRINE_INDEX_P99_MS"):
        tuned("refuses", VITRINE_INDEX_P99_MS="0.000001", VITRINE_INDEX_CLIENTS="2")
    assert "Refused: no parameters of flat" in report("refuses")
    assert live.registry.alias(INDEX_MODEL, "candidate").version == live.base  # type: ignore[union-attr]
