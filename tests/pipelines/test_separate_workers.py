"""Steps on workers that share nothing but settings: each has a home of its own, which is deleted after every step."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tasks import storage
from tasks.pipelines import common, rebuild_index, refresh_index, register_index, train_encoder, tune_index, validate_index
from tasks.records import call_step, to_json
from tasks.registry import ENCODER_MODEL, INDEX_MODEL, Run
from tests.catalog.changes.refreshed import LiveShop, own_mlflow
from tests.encoder.conftest import draw_catalogue
from tests.graphs import open_all_here
from tests.servers import s3_server

pytestmark = [
    pytest.mark.slow,
    # MLflow over SQLite inside this process, where its own warnings are ours.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

Call = Callable[..., Any]


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The store that the workers share."""
    if request.param == "folder":
        yield str(tmp_path / "store")
        return
    with s3_server() as endpoint:
        aws = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
        for name, value in aws.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield f"s3://shop/{tmp_path.name}"


@pytest.fixture
def call(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls a step as a task does, with JSON in and out, on the next of two workers; its disk is then wiped."""
    homes = cycle([tmp_path / "worker-a", tmp_path / "worker-b"])

    def called(step: Callable[..., Any], **arguments: Any) -> Any:
        home = next(homes)
        monkeypatch.setenv("VITRINE_HOME", str(home))
        monkeypatch.setenv("VITRINE_STORE", store)
        result = json.loads(json.dumps(call_step(step, arguments | {"run_key": "night"})))
        assert list((home / "work").glob("night.*")) == [], "a step that succeeded leaves no scratch"
        shutil.rmtree(home, ignore_errors=True)
        return result

    return called


def test_a_rebuild_needs_no_folder_that_its_workers_share(
    call: Call, store: str, mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveShop(tmp_path, own_mlflow(tmp_path, mlflow_tables), monkeypatch)
    live.registry.set_alias(ENCODER_MODEL, "champion", live.registry.index_manifest(live.base).encoder.version)
    if store.startswith("s3://"):  # the run keys of this test's live version are paths, which S3 takes for no key
        live.registry.client.delete_registered_model_alias(INDEX_MODEL, "live")
    # Spark's workers have the environment of whatever test of this process started them first, which names no S3.
    monkeypatch.setattr(rebuild_index, "embed_config", lambda *given: replace(common.embed_config(*given), direct=1000))
    snapshot = call(common.take_snapshot)
    encoder = call(rebuild_index.choose_encoder)
    assert call(rebuild_index.something_changed, snapshot=snapshot, encoder=encoder) is True
    call(validate_index.validate_snapshot, snapshot=snapshot)
    embedded = call(rebuild_index.embed, snapshot=snapshot, encoder=encoder)
    call(validate_index.validate_embeddings, snapshot=snapshot, embedded=embedded)
    template = call(rebuild_index.train_template, encoder=encoder, embedded=embedded)
    inputs = {"snapshot": snapshot, "embedded": embedded, "template": template}
    shards = [call(rebuild_index.build_shard, number=n, **inputs) for n in call(rebuild_index.list_shards, template=template)]
    assert call(rebuild_index.build_shard, number=0, **inputs) == shards[0], "an attempt on another worker finds it"
    tuned = call(tune_index.tune, snapshot=snapshot, encoder=encoder, template=template, shards=shards)
    registered = call(register_index.register_version, encoder=encoder, shards=shards, tuned=tuned, **inputs)
    assert registered["passed"], registered["summary"]
    complete = call(refresh_index.catch_up, registered=registered)
    register_index.publish(complete["version"])
    assert len(live.found(live.registry.aliases(INDEX_MODEL)["candidate"])) == 60


def test_a_student_is_distilled_from_a_teacher_that_another_worker_trained(
    call: Call, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRINE_MLFLOW_URI", mlflow_uri)
    monkeypatch.setenv("VITRINE_CATALOG", str(draw_catalogue(tmp_path / "shop")))
    monkeypatch.setattr("tasks.registry.runs.SYSTEM_EVERY_S", 0.2)
    open_all_here(monkeypatch)
    snapshot = call(common.take_snapshot)
    plan = to_json(train_encoder.plan(common.Snapshot.from_json(snapshot), {"preset": "tiny"}, "night"))
    told, metric = [], Run.metric

    def end_in_the_middle(run: Run, name: str, value: float, step: int = 0) -> None:
        if name == "teacher.loss":
            told.append(step)
            if len(told) == 4:
                raise ConnectionError("this worker is gone")
        metric(run, name, value, step)

    monkeypatch.setattr(Run, "metric", end_in_the_middle)
    with pytest.raises(ConnectionError):
        call(train_encoder.train_teacher, snapshot=snapshot, plan=plan)
    shutil.rmtree(tmp_path / "worker-b")
    teacher = call(train_encoder.train_teacher, snapshot=snapshot, plan=plan)
    assert told == [0, 1, 2, 3, 2, 3, 4, 5], "the other worker goes on from the checkpoint of step 2"
    assert not storage.list_folders(teacher["uri"]), "a finished training leaves no checkpoints"
    assert call(train_encoder.train_teacher, snapshot=snapshot, plan=plan) == teacher, "trained once"
    student = call(train_encoder.distil_student, snapshot=snapshot, plan=plan, teacher=teacher)
    version = call(train_encoder.export_encoder, snapshot=snapshot, plan=plan, teacher=teacher, student=student)
    assert common.registry().version(ENCODER_MODEL, version).tags["recipe"] == plan["recipe"]
