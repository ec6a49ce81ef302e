"""Training from pretrained weights: frozen statistics, interpolation, an inheriting student, and the start as a rival."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from serving.contract.encoder import EncoderFolder
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.encoder.config import EncoderConfig, Recipe, TowerConfig
from tasks.encoder.data.batches import BalancedBatches, training_batches
from tasks.encoder.data.photos import read_training_set
from tasks.encoder.data.pixels import Decoding, content_digests
from tasks.encoder.evaluate.baselines import PRETRAINED, UNTRAINED
from tasks.encoder.evaluate.evaluate import evaluate_encoder
from tasks.encoder.evaluate.gates import EncoderPolicy, encoder_gates
from tasks.encoder.evaluate.report import write_report
from tasks.encoder.presets import demo_pair, preset
from tasks.encoder.train import interpolation
from tasks.encoder.train.distributed import ProcessGroup
from tasks.encoder.train.interpolation import SHARES, between, kept_out, pretrained_state
from tasks.encoder.train.loop import no_log, optimise
from tasks.encoder.train.student import inherit
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.tower_store import load_tower
from tasks.encoder.train.towers import build_student, build_teacher, parameters
from tasks.errors import TrainingError
from tests.catalogs import small_catalog
from tests.encoder.test_adopted import exported

FEW = Recipe(steps=3, products=4, pictures=2, checkpoint_every=2, frozen_norm=True, interpolate=True)
TRUNK = "visual.trunk."


def shop_config(place: Path) -> EncoderConfig:
    """A pair whose teacher starts with the weights of a file, and whose student starts with its teacher's."""
    torch.manual_seed(0)
    network = timm.create_model("vitrine_residual_w8")
    place.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, place / "best.safetensors")
    teacher = TowerConfig(timm="vitrine_residual_w8", pretrained=str(place / "best.safetensors"))
    student = TowerConfig(timm="vitrine_residual_w8", pretrained="teacher", size=16)
    return replace(preset("tiny"), name="shop", teacher=teacher, student=student, teacher_recipe=FEW, student_recipe=FEW)


@pytest.mark.slow
def test_a_fine_tuned_version_says_how_far_it_went_and_is_compared_with_its_start(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpolation, "LEAST", 1)
    monkeypatch.setattr(interpolation, "KEPT_OUT", 0.3)
    folder = exported(shop_config(tmp_path), snapshot, tmp_path)
    manifest = EncoderFolder(folder).manifest
    chosen = manifest.recipe["interpolation"]
    training = read_training_set(snapshot.uri)
    assert chosen["photos"] == kept_out(training).sum() > 0
    assert [t["share"] for t in chosen["tried"]] == list(SHARES)
    best = max(t["mrr"] for t in chosen["tried"])
    assert chosen["share"] == next(t["share"] for t in chosen["tried"] if t["mrr"] == best)
    assert manifest.trained == ("interpolated" if chosen["share"] < 1 else "fine-tuned")

    report = evaluate_encoder(folder, snapshot.uri, tmp_path / "work")
    start = report.pair(PRETRAINED)
    assert start is not None
    assert len(start.ranks) == len(report.photos)
    assert report.pair(UNTRAINED) is None
    gates = encoder_gates(report, None, EncoderPolicy())
    assert "pretrained_recall" in {g.name for g in gates}
    assert not {g.name for g in gates if "untrained" in g.name}
    page = write_report(folder, report, gates, snapshot.uri, tmp_path / "work", tmp_path / "page")
    assert "Interpolation with the pretrained weights" in page.read_text()
    assert f"{chosen['photos']} train photos that were not trained on" in (page.parent / "card.md").read_text()


def test_the_photos_that_a_share_is_chosen_on_are_not_reported_and_not_trained_on(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = read_training_set(snapshot.uri)
    assert not kept_out(training).any(), "two dozen photos are too few to choose on"
    plain = train_teacher(snapshot.uri, shop_config(tmp_path), tmp_path / "few", no_log)
    assert plain.interpolation is None
    monkeypatch.setattr(interpolation, "LEAST", 1)
    monkeypatch.setattr(interpolation, "KEPT_OUT", 0.3)
    photos = {training.split("train").uris[i] for i in np.flatnonzero(kept_out(training))}
    assert photos.isdisjoint(training.never_trained().uris)
    without = train_teacher(snapshot.uri, shop_config(tmp_path), tmp_path / "kept", no_log)
    assert load_tower(without).values["loss"] != load_tower(plain).values["loss"]


def test_what_was_put_on_top_of_pretrained_weights_stays_as_it_was_trained(tmp_path: Path) -> None:
    config = shop_config(tmp_path)
    teacher = build_teacher(config)
    start = pretrained_state(teacher, config)
    assert start
    assert all(name.startswith(TRUNK) for name in start)
    assert pretrained_state(teacher, replace(config, teacher=TowerConfig(timm="vitrine_residual_w8"))) == {}
    end = {name: tensor + 2 if tensor.is_floating_point() else tensor + 1 for name, tensor in start.items()}
    half = between(start, end, 0.5)
    for name, tensor in half.items():
        torch.testing.assert_close(tensor, start[name] + 1)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_norms_keep_their_statistics_and_go_on_learning_their_scale(tmp_path: Path, frozen: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    mean, scale = module[1].running_mean.clone(), module[1].weight.detach().clone()
    recipe = Recipe(steps=2, frozen_norm=frozen, ema_decay=0.0)
    xs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + 5
    optimise("x", module, lambda _: {"loss": module(xs).square().mean()}, recipe, "k", 8, tmp_path, no_log)
    assert torch.equal(module[1].running_mean, mean) is frozen
    assert not torch.equal(module[1].weight, scale)


def test_a_student_begins_with_the_layers_that_it_shares_with_its_teacher(tmp_path: Path) -> None:
    config = replace(demo_pair(), teacher=TowerConfig(timm="tf_efficientnet_lite0"))
    teacher, student = build_teacher(config).image, build_student(config)
    inherit(student, teacher)
    shared = [k for k in student.state_dict() if k in teacher.state_dict() and "trunk" in k]
    assert len(shared) == len([k for k in student.state_dict() if "trunk" in k])
    assert all(torch.equal(student.state_dict()[k], teacher.state_dict()[k]) for k in shared)
    assert parameters(teacher) > 4 * parameters(student)
    with pytest.raises(TrainingError, match="has no layer of its teacher's"):
        inherit(build_student(replace(config, student=TowerConfig(timm="vitrine_residual_w8"))), teacher)


def test_only_a_student_starts_with_a_teacher() -> None:
    config = replace(preset("tiny"), teacher=TowerConfig(timm="vitrine_residual_w8", pretrained="teacher"))
    assert list(config.problems()) == ["teacher.pretrained is 'teacher'; only a student starts with its teacher's weights"]


def test_a_copy_of_a_kept_out_photo_is_not_trained_on_and_a_share_is_not_chosen_on_copies_of_held_out_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpolation, "LEAST", 1)
    monkeypatch.setattr(interpolation, "KEPT_OUT", 0.3)
    catalog = small_catalog(tmp_path / "shop", photos=4)
    training = read_training_set(take_snapshot(str(catalog), str(tmp_path / "snapshots"), "run").uri)
    train, out = training.split("train").uris, kept_out(training)
    first, other = (train[int(np.flatnonzero(which)[0])] for which in (out, ~out))
    (catalog / other).write_bytes((catalog / first).read_bytes())
    config = shop_config(tmp_path / "weights")
    with training_batches(training, config, FEW, tmp_path / "work", Decoding(), ProcessGroup(), out) as batches:
        assert isinstance(batches, BalancedBatches)
        trained = {int(row) for step in range(40) for row in batches.plan(step)[1].ravel()}
    assert train.index(other) not in trained
    held = training.held_out().uris[0]
    digests = np.stack([np.frombuffer(d, np.uint8) for d in content_digests([held, first], training.root)])
    assert interpolation._copies(digests, training).tolist() == [True, False]
