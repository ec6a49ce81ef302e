"""The steps of train_encoder over a real MLflow server, on a drawn catalogue, with the tiniest preset."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from serving.contract.binding import GATES_VERDICT
from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError
from serving.contract.preprocess import decode
from tasks.catalog.sample.catalog import SampleConfig, draw_sample
from tasks.catalog.snapshot import Snapshot
from tasks.encoder.export import export as exporting
from tasks.errors import TrainingError
from tasks.pipelines import common, train_encoder
from tasks.pipelines.encoder_records import ChampionDecision, TrainingPlan
from tasks.registry import ENCODER_MODEL, ENCODER_PATH
from tests.encoder.conftest import draw_catalogue
from tests.graphs import open_all_here, write_once
from tests.tiny import tiny_encoder

pytestmark = pytest.mark.slow

Shop = Callable[[Path], Snapshot]


@pytest.fixture
def shop(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Takes a snapshot of a catalogue folder, in a home of the test's own."""
    monkeypatch.setenv("VITRINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VITRINE_MLFLOW_URI", mlflow_uri)
    monkeypatch.setenv("VITRINE_ENOUGH_PHOTOS", "0")
    monkeypatch.setattr("tasks.registry.runs.SYSTEM_EVERY_S", 0.2)
    open_all_here(monkeypatch)

    def snapshot(folder: Path) -> Snapshot:
        monkeypatch.setenv("VITRINE_CATALOG", str(folder))
        return common.take_snapshot(f"{tmp_path.name}-{folder.name}")

    return snapshot


def test_an_encoder_is_trained_judged_by_its_gates_and_not_trained_again(shop: Shop, tmp_path: Path) -> None:
    draw_sample(SampleConfig(products=36, photos_per_product=2), tmp_path / "shop")
    snapshot, key = shop(tmp_path / "shop"), f"run-1-{tmp_path.name}"
    asked = {"preset": "tiny", "epochs": 1.0, "alpha": 0.5, "photo_days": 200, "force": False}
    plan = train_encoder.plan(snapshot, asked, key)
    assert plan.existing == ""
    assert (plan.config["alpha"], plan.config["photo_days"]) == (0.5, 200)
    assert plan.config["student_recipe"]["steps"] == plan.config["teacher_recipe"]["steps"] <= 36 * 2 / 12
    plan = TrainingPlan.from_json(json.loads(json.dumps(plan.to_json())))  # as it travels through XCom
    teacher = train_encoder.train_teacher(snapshot, plan, key)
    student = train_encoder.distil_student(snapshot, plan, teacher, key)
    version = train_encoder.export_encoder(snapshot, plan, teacher, student, key)
    assert train_encoder.export_encoder(snapshot, plan, teacher, student, key) == version
    decision = train_encoder.judge(snapshot, plan, version, key)
    registry = common.registry()
    assert registry.require_alias(ENCODER_MODEL, "challenger").version == version
    shown = registry.version(ENCODER_MODEL, version)
    assert decision.promote is (shown.tags["verdict"] == "passed")
    assert all(len(value) < 100 for name, value in shown.tags.items() if name not in ("verdict", GATES_VERDICT)), "tags are short"
    assert shown.summary == decision.summary
    for words in (
        "| Recall@10 of held-out photos (",
        "| student size |",
        "**Limits**",
        "/artifactPath/report/report.html?workflowType=machine_learning)",
        "Made by [",
    ):
        assert words in shown.description
    assert f"encoder version {version}" in decision.summary

    runs = {r.data.tags["vitrine.run_key"]: r for r in registry.client.search_runs([registry._experiment_id("encoders")])}
    run = runs[f"{key}.student"]
    assert {"alpha": "0.5", "kl_temperature": "0.1", "photo_days": "200", "preset": "tiny"}.items() <= run.data.params.items()
    assert run.data.params["student_recipe.steps"] == str(student.steps)
    for name in ("student.loss", "student.learning_rate", "student.images_per_s", "student.kl", "student.gradient_norm"):
        assert [m.step for m in registry.client.get_metric_history(run.info.run_id, name)] == list(range(student.steps))
    assert any(name.startswith("system/") for name in runs[f"{key}.teacher"].data.metrics)
    judged = runs[f"{key}.judge"]
    assert judged.data.tags["decision"] == decision.summary
    wanted = ("report.html", "training.png", "recall.png", "report.json", "raw.npz", "gates.json", "card.md")
    for made in (judged, runs[f"{key}.encoder"]):  # the judgement, and the version's own run
        assert {"recall_at_1", "recall_at_10", "mrr", "gates_failed", "times_faster_than_teacher"} <= set(made.data.metrics)
        assert len(made.data.metrics) < 10, "few"
        assert {f.path for f in registry.client.list_artifacts(made.info.run_id, "report")} == {f"report/{n}" for n in wanted}

    assert train_encoder.plan(snapshot, asked, f"run-2-{tmp_path.name}").existing == version
    assert train_encoder.plan(snapshot, asked | {"force": True}, "run-3").forced == "run-3"
    registry.set_alias(ENCODER_MODEL, "champion", version)
    assert train_encoder.judge(snapshot, plan, version, f"run-2-{tmp_path.name}").promote is False


def registered(folder: Path, seed: int) -> str:
    tiny_encoder(folder / str(seed), seed=seed)
    registry = common.registry()
    with registry.run("encoders", f"{folder}-{seed}", "tiny") as run:
        run.artifacts(folder / str(seed), ENCODER_PATH)
        return registry.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, {}, "tiny").version


def test_a_champion_moved_by_hand_is_respected(shop: Shop, tmp_path: Path) -> None:
    snapshot, registry = shop(draw_catalogue(tmp_path / "shop", products=3)), common.registry()
    old, new, chosen = (registered(tmp_path, seed) for seed in (1, 2, 3))

    def champion() -> str:
        return registry.require_alias(ENCODER_MODEL, "champion").version

    registry.set_alias(ENCODER_MODEL, "champion", old)
    decision = ChampionDecision(new, True, old, "passes")
    registry.set_alias(ENCODER_MODEL, "champion", chosen)  # while the version was being judged
    held = train_encoder.promote_champion(decision, "run-1")
    assert (held.promoted, champion()) == (False, chosen)
    assert (
        f"version {new} is not promoted: it was compared with champion version {old}, and meanwhile version {chosen}"
        in held.summary
    )

    registry.set_alias(ENCODER_MODEL, "champion", old)
    assert train_encoder.promote_champion(decision, "run-1").promoted is True
    assert train_encoder.promote_champion(decision, "run-1").promoted is True  # killed after the move and run again
    assert champion() == new
    registry.set_alias(ENCODER_MODEL, "champion", chosen)  # it disappointed, and the same recipe is found again next week
    again = train_encoder.judge(snapshot, TrainingPlan("tiny", "", {}), new, "run-2")
    assert (again.promote, champion()) == (False, chosen)
    assert "was champion before (since run-1) and was replaced, so it is not promoted again" in again.summary


def test_what_cannot_be_trained_says_why_and_registers_nothing(shop: Shop, tmp_path: Path) -> None:
    before = [v.version for v in common.registry().versions(ENCODER_MODEL)]
    snapshot, key = shop(draw_catalogue(tmp_path / "shop", products=6)), tmp_path.name
    for asked, sentence in (
        ({"preset": "vit_b17"}, "there is no encoder preset 'vit_b17'"),
        ({"alpha": 2.0}, "alpha=2 is not a share of the loss; give a number from 0"),
        ({"epochs": 0.0}, "epochs=0 trains nothing"),
        ({"photo_days": 30}, "no photo has a date"),
    ):
        with pytest.raises(TrainingError, match=sentence):
            train_encoder.plan(snapshot, {"preset": "tiny"} | asked, key)

    plan = train_encoder.plan(snapshot, {"preset": "tiny"}, key)
    wild = TrainingPlan.from_json(json.loads(json.dumps(plan.to_json())))
    wild.config["teacher_recipe"]["learning_rate"] = 1e30
    with pytest.raises(TrainingError, match=r"teacher: the loss is not a number at step \d .*lower the learning rate"):
        train_encoder.train_teacher(snapshot, wild, f"{key}-wild")

    one = shop(draw_catalogue(tmp_path / "one", products=1))
    with pytest.raises(TrainingError, match="a contrastive loss needs at least two products with readable pictures"):
        train_encoder.train_teacher(one, train_encoder.plan(one, {"preset": "tiny"}, key), f"{key}-one")

    folder = draw_catalogue(tmp_path / "empty", products=12)
    for picture in (folder / "images").glob("p007*"):
        picture.write_bytes(b"damaged")
    empty = shop(folder)
    with pytest.raises(TrainingError, match=r"labelled products have no picture that can be read .*\(first: p007\)"):
        train_encoder.train_teacher(empty, train_encoder.plan(empty, {"preset": "tiny"}, key), f"{key}-empty")

    teacher = train_encoder.train_teacher(snapshot, plan, key)
    weights = Path(teacher.uri) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(TrainingError, match=r"the checkpoint in .* is damaged .*delete that folder to start again"):
        train_encoder.distil_student(snapshot, plan, teacher, key)
    assert [v.version for v in common.registry().versions(ENCODER_MODEL)] == before


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_a_version_is_an_mlflow_model_that_takes_a_pictures_bytes(
    shop: Shop, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    key = f"model-{tmp_path.name}"
    write_once(monkeypatch, tmp_path / "graphs")
    snapshot = shop(draw_catalogue(tmp_path / "shop"))
    plan = train_encoder.plan(snapshot, {"preset": "tiny", "force": True}, key)
    teacher = train_encoder.train_teacher(snapshot, plan, key)
    student = train_encoder.distil_student(snapshot, plan, teacher, key)
    before = common.registry().versions(ENCODER_MODEL)

    def cut(write: Callable[..., None]) -> Callable[..., None]:
        """A writer whose file ends early, as on a full disk."""

        def written(module: object, example: object, path: Path) -> None:
            write(module, example, path)
            path.write_bytes(path.read_bytes()[:-2000])

        return written

    def other(golden: Callable[..., dict]) -> Callable[..., dict]:
        """Golden answers that are those of other pictures."""
        return lambda *args: {k: v if k in ("pixels", "tokens") else np.roll(v, 1, axis=0) for k, v in golden(*args).items()}

    for name, change, sentence in (
        ("write_onnx", cut, "teacher.fp32 in onnxruntime: ONNX Runtime cannot load it"),
        ("_golden", other, "golden outputs are not reproduced"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(exporting, name, change(getattr(exporting, name)))
            with pytest.raises(ContractError, match=sentence) as raised:
                train_encoder.export_encoder(snapshot, plan, teacher, student, key)
        assert "\n" not in str(raised.value)
        assert common.registry().versions(ENCODER_MODEL) == before

    version = train_encoder.export_encoder(snapshot, plan, teacher, student, key)
    folder = common.registry().encoder_folder(version)
    manifest = EncoderFolder(folder).manifest
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", mlflow_uri)
    graph = mlflow.onnx.load_model(f"models:/{ENCODER_MODEL}/{version}")
    assert [v.name for v in graph.graph.input] == ["input"]
    loaded = mlflow.pyfunc.load_model(f"models:/{ENCODER_MODEL}/{version}")
    assert loaded.metadata.metadata == {"query": manifest.query, "document": manifest.document}
    photos = [path.read_bytes() for path in sorted((tmp_path / "shop" / "images").glob("*.jpg"))[:4]]
    encoder = EncoderFolder(folder).open(manifest.query)
    expected = np.concatenate([encoder.encode(decode(photo, manifest.preprocess)[None]) for photo in photos])
    assert np.abs(loaded.predict(pd.DataFrame({"image": photos})) - expected).max() < 1e-5
    card = (folder / "card.md").read_text()
    assert "Not judged yet" in card
    assert f"{plan.config['student']['timm']} from random weights" in card
    assert "| student.int8.minmax |" in card
