"""timm's towers: classifiers as they are, projections that are trained, and students that shrink their pictures."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional

from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.config import EncoderConfig, TowerConfig
from tasks.encoder.lookup import as_it_is, from_tower
from tasks.encoder.presets import preset
from tasks.encoder.train.timm_models import PLAIN_MEAN, tower_facts
from tasks.encoder.train.towers import build_student, build_teacher
from tasks.encoder.train.weights import PACKAGES
from tasks.errors import TrainingError


def saved(name: str, path: Path) -> torch.nn.Module:
    """A classifier of timm's with random weights, written as its training scripts do."""
    torch.manual_seed(4)
    network = timm.create_model(name).eval()
    state = {k: v.clone().contiguous() for k, v in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 1, "state_dict": state}, path)
    return network


def pictures(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("file", ["best.pth", "model.safetensors"])
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "test_vit"])
def test_a_classifier_as_it_is_gives_its_own_pooled_features(tmp_path: Path, name: str, file: str) -> None:
    network = saved(name, tmp_path / file)
    config = as_it_is(from_tower("shop", TowerConfig(timm=name, pretrained=str(tmp_path / file))))
    facts = timm.data.resolve_data_config({}, model=network)
    size = facts["input_size"][-1]
    assert (config.preprocess, config.has_text) == (PreprocessSpec(size=size, fit="crop"), False)
    mean, std = (torch.tensor(facts[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    shown = (pictures(size) - mean) / std
    with torch.no_grad():
        expected = functional.normalize(network.forward_head(network.forward_features(shown), pre_logits=True), dim=-1)
        found = build_teacher(config).eval().image(pictures(size))
    assert found.shape == (2, config.dim)
    assert (found - expected).abs().max() < 1e-5


def test_a_package_of_weights_is_a_teacher_with_its_own_pixels(package: tuple[str, Path]) -> None:
    name, path = package
    tower = TowerConfig(timm=PACKAGES[name].timm, pretrained=name)
    config = as_it_is(from_tower("lite", tower))
    made = build_teacher(config).eval()
    weights = list(torch.load(path, weights_only=True).values())
    assert torch.equal(next(iter(made.model.visual.trunk.state_dict().values())), weights[0])
    assert (config.dim, config.preprocess) == (1280, PreprocessSpec(size=224, fit="crop"))
    assert float(made.image.mean[0, 0, 0, 0]) == pytest.approx(127 / 255)
    assert float(made.image.std[0, 0, 0, 0]) == pytest.approx(128 / 255)


def test_a_pretrained_tower_is_projected_to_another_width_for_training(tmp_path: Path) -> None:
    network = saved("resnet10t", tmp_path / "best.pth")
    tower = TowerConfig(timm="resnet10t", pretrained=str(tmp_path / "best.pth"))
    config = replace(preset("tiny"), teacher=tower, student=tower, preprocess=PreprocessSpec(size=64))
    for encoder in (build_teacher(config).image, build_student(config)):
        assert encoder.eval()(pictures(64)).shape == (2, config.dim)
        assert torch.equal(encoder.tower.trunk.conv1[0].weight, network.conv1[0].weight)
        assert float(encoder.mean[0, 0, 0, 0]) == pytest.approx(0.485)


def test_a_tower_from_random_weights_has_plain_pixels() -> None:
    encoder = build_student(replace(preset("tiny"), student=TowerConfig(timm="resnet10t")))
    assert float(encoder.mean[0, 0, 0, 0]) == pytest.approx(PLAIN_MEAN[0])


def test_a_transformer_of_timms_takes_pictures_of_another_size(tmp_path: Path) -> None:
    saved("test_vit", tmp_path / "best.pth")
    tower = TowerConfig(timm="test_vit", pretrained=str(tmp_path / "best.pth"))
    config = replace(as_it_is(from_tower("vit", tower)), preprocess=PreprocessSpec(size=96))
    assert build_teacher(config).eval().image(pictures(96)).shape == (2, config.dim)
    with pytest.raises(TrainingError, match=r"test_vit does not take pictures of 8 pixels .*take its own size, 160"):
        build_teacher(replace(config, preprocess=PreprocessSpec(size=8)))


@pytest.mark.parametrize("side", [48, 40])
def test_a_student_shrinks_its_teachers_pixels(side: int) -> None:
    """By plain averages where its side is a whole part of theirs."""
    config = replace(
        preset("tiny"), preprocess=PreprocessSpec(size=side), student=TowerConfig(timm="vitrine_residual_w8", size=24)
    )
    student = build_student(config).eval()
    seen = pictures(side)
    averages, between = functional.avg_pool2d(seen, 2), functional.interpolate(seen, (24, 24), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert torch.equal(student(seen), student(averages if side == 48 else between))
        assert not torch.allclose(student(seen), replace_size(config)(seen), atol=1e-3)


def replace_size(config: EncoderConfig) -> torch.nn.Module:
    """The same student without the shrinking."""
    return build_student(replace(config, student=replace(config.student, size=0))).eval()


@pytest.mark.parametrize(
    ("tower", "sentence"),
    [
        ({"timm": "resnet5000"}, "the image tower 'resnet5000' cannot be built: .*; name a timm model"),
        (
            {"timm": "resnet10t", "pretrained": "gone.pth"},
            "the checkpoint gone.pth does not exist; give the path of a local file",
        ),
        (
            {"timm": "resnet10t", "pretrained": "{}/vit.pth"},
            r"vit.pth does not fit resnet10t: it lacks \d+ tensors \(first: conv1",
        ),
    ],
)
def test_what_is_wrong_with_a_tower_is_one_sentence(tmp_path: Path, tower: dict[str, str], sentence: str) -> None:
    saved("test_vit", tmp_path / "vit.pth")
    named = TowerConfig(**{k: v.format(tmp_path) for k, v in tower.items()})
    for build in (build_teacher, build_student):
        with pytest.raises(TrainingError, match=sentence) as raised:
            build(replace(preset("tiny"), preprocess=PreprocessSpec(size=160), teacher=named, student=named))
        assert "\n" not in str(raised.value)


def test_the_facts_of_an_unknown_tower_are_one_sentence() -> None:
    with pytest.raises(TrainingError, match="the image tower 'resnet5000' cannot be built"):
        tower_facts(TowerConfig(timm="resnet5000"))
