"""Pretrained encoders as they are, and their students: exported, judged, and served by one tower where there is no student."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from safetensors.torch import save_file

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError, sha256_file
from serving.contract.provenance import Origin
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.encoder.config import EncoderConfig, Recipe, TowerConfig
from tasks.encoder.evaluate.baselines import UNTRAINED
from tasks.encoder.evaluate.evaluate import evaluate_encoder
from tasks.encoder.evaluate.gates import EncoderPolicy, encoder_gates
from tasks.encoder.evaluate.report import write_report
from tasks.encoder.export import onnx_graph
from tasks.encoder.export.export import check_folder, export_encoder
from tasks.encoder.lookup import choose_training, find_encoder, from_tower
from tasks.encoder.train.loop import no_log
from tasks.encoder.train.student import distil_student
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.tower_store import restore_teacher
from tests.encoder.conftest import draw_catalogue
from tests.encoder.train.test_open_clip_models import SIGLIP_SIGHT, repository
from tests.graphs import open_here

pytestmark = pytest.mark.slow

FEW = Recipe(steps=2, products=4, pictures=2, checkpoint_every=2)


def local_clip(place: Path) -> EncoderConfig:
    """A small CLIP with random weights in a folder of open_clip's, as it is."""
    folder = repository(place / "model", sight=SIGLIP_SIGHT, weights="open_clip_model.safetensors")
    return choose_training(find_encoder(f"local-dir:{folder}"), "none", None)


def exported(config: EncoderConfig, snapshot: Snapshot, place: Path) -> Path:
    """The folder of a version: adopted, or with the student that the config names."""
    teacher = train_teacher(snapshot.uri, config, place / "work", no_log)
    student = distil_student(snapshot.uri, teacher, config, place / "work", no_log) if config.student else None
    export_encoder(snapshot.uri, teacher, student, config, place / "work", place / "encoder", check=open_here)
    return place / "encoder"


@pytest.fixture(scope="module")
def adopted(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The place of the small CLIP as it is: `model`, `work` and `encoder`."""
    place = tmp_path_factory.mktemp("adopted")
    exported(local_clip(place), snapshot, place)
    return place


def test_a_model_as_it_is_is_an_ordinary_version_with_one_image_tower_and_words(
    snapshot: Snapshot, adopted: Path, tmp_path: Path
) -> None:
    folder = adopted / "encoder"
    manifest = EncoderFolder(folder).manifest
    assert set(manifest.towers) == {"teacher", "text"}
    assert manifest.document == "teacher.fp32"
    assert manifest.query in ("teacher.int8", "teacher.fp32")
    assert (manifest.trained, manifest.preprocess.fit) == ("none", "squash")
    weights = adopted / "model" / "open_clip_model.safetensors"
    name = f"local-dir:{adopted / 'model'}"
    assert manifest.origin == Origin(name=name, sha256=sha256_file(weights), licence="not stated")
    assert "licence not stated" in (folder / "card.md").read_text()
    assert not (folder / "training.json").exists()

    report = evaluate_encoder(folder, snapshot.uri, tmp_path / "work")
    assert report.pair(UNTRAINED) is None
    assert report.pair("text.fp32", asked="titles") is not None
    names = {g.name for g in encoder_gates(report, None, EncoderPolicy())}
    assert {"parity", "beats_colour_histogram_recall_at_1"} <= names
    assert not {n for n in names if n.startswith("student") or "untrained" in n}
    assert ("int8_recall" in names) == ("int8" in manifest.towers["teacher"])
    page = write_report(
        folder, report, encoder_gates(report, report, EncoderPolicy()), snapshot.uri, tmp_path / "work", tmp_path / "page"
    )
    assert "report.html" in page.name
    assert {p.name for p in page.parent.iterdir()} == {"report.html", "recall.png", "report.json", "raw.npz", "card.md"}


@pytest.mark.slow
def test_a_classifier_as_it_is_is_a_version_without_words(snapshot: Snapshot, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "best.safetensors")
    config = from_tower("classifier", TowerConfig(timm="resnet10t", pretrained=str(tmp_path / "best.safetensors")))
    config = choose_training(replace(config, preprocess=config.preprocess.model_copy(update={"size": 64})), "none", None)
    folder = exported(config, snapshot, tmp_path)
    manifest = EncoderFolder(folder).manifest
    assert (set(manifest.towers), manifest.tokenizer, manifest.dim) == ({"teacher"}, None, 512)
    assert "It cannot be asked with words" in (folder / "card.md").read_text()
    with np.load(folder / "golden.npz") as golden:
        assert "tokens" not in golden.files
    assert evaluate_encoder(folder, snapshot.uri, tmp_path / "work").pair(manifest.query) is not None


@pytest.mark.slow
def test_a_student_for_queries_needs_no_labels_and_shrinks_its_pictures_in_its_graph(tmp_path: Path) -> None:
    shop = draw_catalogue(tmp_path / "shop")
    rows = (shop / "photos.csv").read_text().splitlines()
    (shop / "photos.csv").write_text("\n".join(r for r in rows if not r.endswith(",train")) + "\n")
    snapshot = take_snapshot(str(shop), str(tmp_path / "snapshots"), "one")
    config = replace(local_clip(tmp_path), student=TowerConfig(timm="vitrine_residual_w8", size=16), student_recipe=FEW)
    folder = exported(config, snapshot, tmp_path)
    manifest = EncoderFolder(folder).manifest
    assert set(manifest.towers) == {"teacher", "student", "text"}
    assert (manifest.trained, manifest.recipe["data"]["train_photos"]) == ("none", 0)
    assert list(json.loads((folder / "training.json").read_text())) == ["student"]
    graph = onnx.load(folder / "student.fp32.onnx").graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim][1:] == [32, 32, 3]
    assert "AveragePool" in {n.op_type for n in graph.node}
    report = evaluate_encoder(folder, snapshot.uri, tmp_path / "work")
    names = {g.name for g in encoder_gates(report, None, EncoderPolicy())}
    assert {"student_recall", "student_size", "student_speed"} <= names


@pytest.mark.slow
def test_weights_that_are_too_large_for_a_graph_lie_beside_it_and_are_part_of_the_version(
    snapshot: Snapshot, adopted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = EncoderFolder(adopted / "encoder").manifest
    monkeypatch.setattr(onnx_graph, "LARGEST_BYTES", 20_000)
    folder = exported(local_clip(tmp_path), snapshot, tmp_path / "large")
    manifest = EncoderFolder(folder).manifest
    variant, data = manifest.variant("teacher.fp32"), folder / "teacher.fp32.onnx.data"
    assert variant.data is not None
    assert (variant.data.path, variant.data.sha256) == (data.name, sha256_file(data))
    graph = onnx.load(folder / "teacher.fp32.onnx", load_external_data=False)
    assert {p.key: p.value for p in graph.metadata_props} == {onnx_graph.DATA_SHA256: variant.data.sha256}
    with np.load(folder / "golden.npz") as large, np.load(adopted / "encoder" / "golden.npz") as one:
        assert np.abs(large["teacher.fp32"] - one["teacher.fp32"]).max() < 1e-6
    assert set(manifest.towers["teacher"]) == set(small.towers["teacher"])
    check_folder(folder)
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    with pytest.raises(ContractError, match=r"teacher.fp32.onnx.data: sha256 .*; the file is corrupt"):
        EncoderFolder(folder).open("teacher.fp32")


def test_what_was_loaded_once_is_not_asked_for_again(snapshot: Snapshot, tmp_path: Path) -> None:
    config = local_clip(tmp_path)
    first = train_teacher(snapshot.uri, config, tmp_path / "work", no_log)
    shutil.rmtree(tmp_path / "model")
    assert train_teacher(snapshot.uri, config, tmp_path / "work", no_log) == first
    teacher = restore_teacher(first, config)
    assert teacher.image(torch.rand(2, 3, 32, 32)).shape == (2, config.dim)
    assert len(teacher.tokenizer().encode("a red mug").ids) == teacher.context()
