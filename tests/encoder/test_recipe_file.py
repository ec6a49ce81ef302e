"""A recipe of one's own: what a TOML file may say, and every mistake as one sentence."""

from pathlib import Path

import pytest

from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.config import TowerConfig
from tasks.encoder.lookup import find_encoder
from tasks.encoder.presets import preset
from tasks.encoder.recipe_file import read_recipe
from tasks.errors import TrainingError
from tests.encoder.train.test_open_clip_models import repository

SHOES = """
alpha = 0.5

[teacher]
open_clip = "ViT-B-16"
pretrained = "weights/shoes.safetensors"
quick_gelu = true

[student]
timm = "mobilenetv4_conv_small"
size = 96

[preprocess]
size = 160

[teacher_recipe]
steps = 400
learning_rate = 1e-5

[teacher_recipe.augmentation]
least_area = 0.5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "shoes.toml"
    path.write_text(text)
    return path


def test_what_a_recipe_leaves_out_follows_from_its_teacher(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "shoes.safetensors").write_bytes(b"")
    config = find_encoder(str(write(tmp_path, SHOES)))
    weights = str(tmp_path / "weights" / "shoes.safetensors")
    assert config.name == "shoes"
    assert config.teacher == TowerConfig(open_clip="ViT-B-16", pretrained=weights, quick_gelu=True)
    assert config.student == TowerConfig(timm="mobilenetv4_conv_small", size=96)
    assert (config.dim, config.preprocess) == (512, PreprocessSpec(size=160, fit="crop"))
    assert (config.alpha, config.teacher_recipe.steps, config.teacher_recipe.learning_rate) == (0.5, 400, 1e-5)
    assert (config.teacher_recipe.augmentation.least_area, config.teacher_recipe.augmentation.flip) == (0.5, True)


def test_a_recipe_may_start_from_any_encoder(tmp_path: Path) -> None:
    config = read_recipe(write(tmp_path, 'base = "demo"\nname = "mine"\n[teacher_recipe]\nsteps = 0\n[student]\n'))
    assert (config.name, config.teacher, config.teacher_recipe.steps) == ("mine", preset("demo").teacher, 0)
    assert not config.student
    assert config.student_recipe == preset("demo").student_recipe


def test_a_folder_beside_the_recipe_is_found_from_it(tmp_path: Path) -> None:
    repository(tmp_path / "model")
    config = read_recipe(write(tmp_path, '[teacher]\nopen_clip = "local-dir:model"\n'))
    assert config.teacher.open_clip == f"local-dir:{tmp_path / 'model'}"
    assert config.dim == 16


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dim = ", "shoes.toml is not TOML: "),
        ("", r"there is no \[teacher\] and no base; name the network, or the encoder to start from"),
        ("base = 3", "base is 3; give the name of an encoder"),
        ('base = "hugest"', "there is no encoder preset 'hugest'"),
        ('base = "demo"\nsteps = 4', "there is no field steps; there are alpha, "),
        ('base = "demo"\n[teacher_recipe]\nstep = 4', "there is no field teacher_recipe.step; there are accumulate, "),
        ('base = "demo"\n[teacher_recipe]\nsteps = "many"', "teacher_recipe.steps: Input should be a valid integer.* 'many'"),
        ('base = "demo"\nteacher = "ViT-B-32"', "teacher is 'ViT-B-32'; a table is expected"),
        ('base = "demo"\n[alpha]\nx = 1', r"alpha is .*; a single value is expected"),
        ('base = "demo"\n[teacher_recipe]\nsteps = -1', "teacher_recipe.steps is -1; at least 0 is needed"),
        ('base = "demo"\n[student_recipe]\nproducts = 1', "student_recipe.products is 1; at least 2 is needed"),
        ('base = "demo"\n[student_recipe]\nlearning_rate = 0', "student_recipe.learning_rate is 0; give a number above 0"),
        ('base = "demo"\nalpha = 2', r"alpha is 2; give a share from 0 \(imitate only\) to 1"),
        ('base = "demo"\ndim = 0', "dim is 0; a vector has at least one number"),
        ('base = "demo"\nkl_temperature = 0', "kl_temperature is 0; give a number above 0"),
        ('base = "demo"\ncache_size = 20', "cache_size is 20; crops of 160 pixels need pictures of at least that side"),
        ('base = "demo"\n[preprocess]\nfit = "stretch"', "preprocess.fit: Input should be 'squash', 'crop' or 'pad'.* 'stretch'"),
        ('base = "demo"\n[preprocess]\nsize = 5000', "preprocess.size: Input should be less than or equal to 1024 .*5000"),
        ('base = "demo"\n[student]\nopen_clip = "RN50"', "student.open_clip is 'RN50'; a student is one of timm's networks"),
        ('base = "demo"\n[student]\ntimm = "resnet18"\nsize = 640', "student.size is 640; give a side of at most 160"),
        (
            'base = "demo"\n[teacher]\ntimm = "resnet18"\nsize = 24',
            "teacher.size is 24; the teacher's pictures are the version's",
        ),
        (
            'base = "demo"\n[teacher]\ntimm = "resnet18"\nopen_clip = "RN50"',
            "teacher names both open_clip 'RN50' and timm 'resnet18'",
        ),
        ('base = "demo"\n[teacher]\npretrained = "timm"', "teacher names no network; set its open_clip or its timm"),
        ('[teacher]\nopen_clip = "ViT-B-17"', "open_clip has no model 'ViT-B-17'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence) as raised:
        read_recipe(write(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the recipe .*gone.toml cannot be read: .*No such file"):
        read_recipe(tmp_path / "gone.toml")
