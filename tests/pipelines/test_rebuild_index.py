"""The steps of rebuild_index over a real registry."""

from pathlib import Path
from typing import cast

import pytest

from tasks.catalog.snapshot import read_snapshot
from tasks.embed.job import EmbedResult
from tasks.errors import GateFailed
from tasks.index.tune import TuningResult
from tasks.pipelines import index_draft, rebuild_index, tune_index
from tasks.registry import INDEX_MODEL, Run
from tests.catalog.changes.refreshed import LiveShop, own_mlflow

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_tuning_leaves_its_report_whether_it_chooses_or_refuses(
    mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)
    manifest = live.registry.index_manifest(live.base)
    snapshot, encoder = read_snapshot(manifest.snapshot.uri), manifest.encoder
    embedded = EmbedResult("made-1", str(tmp_path / "work" / "made-1" / "vectors"), "", "", encoder.dim, 2, 60, 60, 0, 60, 0, {})

    def tuned(run_key: str, **settings: str) -> TuningResult:
        template = rebuild_index.train_template(encoder, embedded, run_key)
        numbers = rebuild_index.list_shards(template)
        shards = [rebuild_index.build_shard(n, snapshot, embedded, template, run_key) for n in numbers]
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        return tune_index.tune(snapshot, encoder, template, shards, run_key)

    def report(run_key: str) -> str:
        with live.registry.run(index_draft.EXPERIMENT, run_key, run_key) as run:
            assert {"tuning/tuning.md", "tuning/tuning.png"} <= set(dict(live.registry.artifacts(run.run_id, "tuning")))
            return live.registry.fetch(run.run_id, "tuning/tuning.md", tmp_path / "fetched" / run_key).read_text()

    assert tuned("chooses").search["family"] == "flat"
    assert "chosen: the least work" in report("chooses")
    assert "| hnsw_fp16 | needs 256 training vectors and there are 60; " in report("chooses"), "every family says why"
    with pytest.raises(GateFailed, match="no other family is known to keep to the budget: raise VITRINE_INDEX_P99_MS"):
        tuned("refuses", VITRINE_INDEX_P99_MS="0.000001", VITRINE_INDEX_CLIENTS="2")
    assert "Refused: no parameters of flat" in report("refuses")
    assert live.registry.alias(INDEX_MODEL, "candidate").version == live.base  # type: ignore[union-attr]


def test_mlflow_that_is_away_costs_the_board_a_figure_and_the_log_shows_no_password(caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        def log_now(self, values: dict[str, float]) -> None:
            raise OSError("API request to http://ml:s3cret@mlflow:5000/api failed")

    rebuild_index.progress_report(cast(Run, Away()))(3, 10)
    assert "3 of 10 pictures are embedded; MLflow did not take that" in caplog.text
    assert "s3cret" not in caplog.text
