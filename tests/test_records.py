"""What steps hand to each other survives JSON, and JSON that is something else is refused in one sentence."""

import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Sequence
from typing import Any

import pytest

import tasks.pipelines
from serving.contract.files import FileRef
from serving.contract.manifest import Gate
from tasks.catalog.snapshot import Snapshot
from tasks.embed.job import EmbedResult
from tasks.encoder.train.tower_record import TrainedTower
from tasks.index.build import BuiltShard
from tasks.index.template import Template
from tasks.index.tune import TuningResult
from tasks.pipelines.encoder_records import ChampionDecision, TrainingPlan
from tasks.pipelines.index_records import EmbeddedChanges, RefreshPlan, RegisteredVersion
from tasks.pipelines.promotion_records import Flip, PromotionPlan
from tasks.records import Record, RecordError, call_step, from_json, to_json
from tasks.release.promotion.bake import Reading

FILE = FileRef(path="base-00000.faiss", sha256="a" * 64, bytes=7)
EMBEDDED = EmbedResult("r", "s3://b/vectors/r", "s3://b/embeddings/x", "s3://b/quarantine/r", 8, 2, 3, 2, 1, 2, 0, {"missing": 1})
RECORDS: list[Record] = [
    Snapshot("s", "s3://b/snapshots/s", 3, 1, "c" * 64, "sqlite:///shop.db", "/shop", 2),
    EMBEDDED,
    Template(
        "ivf_flat", "IVF64,Flat", 8, 2, 3, "s3://b/templates/x.faiss", "d" * 64, "s3://b/vectors/r", 0.9, "", {"flat": "fits"}
    ),
    BuiltShard(1, 3, "flat", "s3://b/shards/r/shard-00001", FILE, FILE, "e" * 64),
    TuningResult({"family": "flat", "candidates": 500}, {"params": {}, "p99_ms": 1.5}, [{"params": {"nprobe": 8}}], 20),
    TrainedTower("teacher", "s3://b/towers/x/teacher", "teacher-x", 9, 100, 0.5, 1.0, 2.0, 3.0, 4, "fp32"),
    RegisteredVersion("7", True, "index version 7", "too many deltas"),
    RefreshPlan(
        True, "r", "s3://b/changes/r", "6", {"weights": {"colour": 0.3}}, ["5"], 2, 1, 1, 0, 0, 2, 0, "", "2026-12-01", "two"
    ),
    EmbeddedChanges(EMBEDDED, "s3://b/snapshots/r", 5.5, "1 of 3 products is in quarantine"),
    EmbeddedChanges(),
    TrainingPlan("tiny", "x", {"alpha": 0.5}, "3"),
    ChampionDecision(
        "4", False, "3", "it fails", [Gate(name="recall", value=0.5, threshold=0.9, passed=False, reason="too low")]
    ),
    PromotionPlan("7", "green", "6", "blue", "5", "3", False, "goes to green", {"MLflow run": "http://m/1"}),
    Flip("7", "green", 0.2, "live", [Reading(3.0, 0.0, {0.1: 2.0, float("inf"): 3.0}, 1.0, 1.0, "7"), Reading()]),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_is_the_same_after_its_json(record: Record) -> None:
    assert type(record).from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"later": 1}, "later: Unexpected keyword argument"),
        ({"version": None}, "version: Input should be a valid string"),
        ({"version": 7}, "version: Input should be a valid string"),
        ({"passed": "perhaps"}, "passed: Input should be a valid boolean"),
    ],
)
def test_json_of_another_form_is_refused_with_the_field_and_what_to_do(change: dict[str, Any], sentence: str) -> None:
    good = RegisteredVersion("7", True, "index version 7").to_json()
    with pytest.raises(RecordError, match=f"an earlier step is not a RegisteredVersion: {sentence}.*clear that step") as caught:
        RegisteredVersion.from_json(good | change)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecordError, match="version"):
        RegisteredVersion.from_json({n: v for n, v in good.items() if n != "version"})
    for nothing in (None, [], "7"):
        with pytest.raises(RecordError, match="is not a RegisteredVersion"):
            RegisteredVersion.from_json(nothing)


class Lazy(Sequence[Any]):
    """As Airflow gives what mapped tasks returned."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: Any) -> Any:
        return self.items[number]


def test_a_step_gets_records_by_name_and_returns_json() -> None:
    def step(registered: RegisteredVersion, shards: list[BuiltShard], run_key: str, exported: str | None = None) -> list[Any]:
        return [registered, exported, run_key, *(s.shard for s in shards)]

    registered, shard = RegisteredVersion("7", True, "it"), BuiltShard(1, 3, "flat", "u", FILE, FILE)
    context = {"registered": to_json(registered), "shards": Lazy([to_json(shard)] * 2), "run_key": "r", "task": object()}
    assert call_step(step, context | {"exported": None}) == [registered.to_json(), None, "r", 1, 1]
    with pytest.raises(RecordError, match=r"is not a list.*: 1\.shard"):
        call_step(step, context | {"shards": [to_json(shard), {}]})


def test_every_record_is_frozen_and_holds_no_path_of_a_machine() -> None:
    for module in pkgutil.iter_modules(tasks.pipelines.__path__):
        importlib.import_module(f"tasks.pipelines.{module.name}")
    kinds = Record.__subclasses__()
    assert {type(r) for r in RECORDS} <= set(kinds)
    for kind in kinds:
        assert kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]
        types = [str(f.type) for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        assert not [t for t in types if "Path" in t], f"{kind.__name__}: the next step may run on another machine"


def test_plain_values_are_their_own_json() -> None:
    assert to_json({"a": 1}) == {"a": 1}
    assert (to_json(True), to_json(None), to_json("x")) == (True, None, "x")
    assert from_json(int, 3) == 3
