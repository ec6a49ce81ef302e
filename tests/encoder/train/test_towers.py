"""Building towers: open_clip's own, ours, and what is said when weights are missing."""

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from serving.contract.preprocess import PreprocessSpec
from tasks.catalog.snapshot import Snapshot
from tasks.encoder.config import EncoderConfig, TowerConfig
from tasks.encoder.evaluate.gates import EncoderPolicy
from tasks.encoder.presets import preset
from tasks.encoder.train.loop import no_log
from tasks.encoder.train.student import distil_student
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.towers import build_student, build_teacher, parameters


def with_teacher(**tower: str) -> EncoderConfig:
    return replace(preset("tiny"), teacher=TowerConfig(**tower))


def test_the_demo_teacher_is_an_open_clip_model_of_a_timm_tower() -> None:
    teacher = build_teacher(preset("demo"))
    assert isinstance(teacher.model, open_clip.CLIP)
    assert isinstance(teacher.model.visual, open_clip.timm_model.TimmModel)
    student = build_student(preset("demo_pair"))
    assert parameters(teacher.image) >= EncoderPolicy().smaller * parameters(student)
    with torch.no_grad():
        vectors = teacher.eval().image(torch.rand(3, 3, 64, 64))
        texts = teacher.text(open_clip.SimpleTokenizer()(["a red mug", "a bag"], context_length=teacher.context()))
    assert vectors.shape == (3, 128)
    assert texts.shape == (2, 128)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_a_model_config_of_ones_own_is_a_teacher(tmp_path: Path) -> None:
    path = tmp_path / "shop-vit.json"
    vision = {"image_size": 24, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    words = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": words}))
    teacher = build_teacher(with_teacher(open_clip=str(path)))
    assert teacher.image(torch.rand(2, 3, 24, 24)).shape == (2, 16)
    assert teacher.context() == 12
    weights = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in teacher.state().items()}, weights)
    again = build_teacher(replace(with_teacher(open_clip=str(path), pretrained=str(weights)), seed=99))
    assert torch.equal(again.state()["visual.conv1.weight"], teacher.state()["visual.conv1.weight"])


@pytest.mark.slow
def test_a_real_preset_trains_a_step_from_random_weights(snapshot: Snapshot, tmp_path: Path) -> None:
    real = preset("vit_b32")
    few = replace(real.teacher_recipe, steps=1, products=2, pictures=2)
    config = replace(real, teacher=replace(real.teacher, pretrained=""), teacher_recipe=few, student_recipe=few, precision="fp32")
    teacher = train_teacher(snapshot.uri, config, tmp_path, no_log)
    student = distil_student(snapshot.uri, teacher, config, tmp_path, no_log)
    assert teacher.parameters > EncoderPolicy().smaller * student.parameters
    assert teacher.final_loss > 0
    assert student.final_loss > 0


def test_the_same_seed_gives_the_same_start() -> None:
    a, b = build_student(preset("tiny")).state_dict(), build_student(preset("tiny")).state_dict()
    other = build_student(replace(preset("tiny"), seed=8)).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], other[k]) for k in a)


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small_035", "mobilenetv3_small_050", "resnet10t", "test_vit"])
def test_any_timm_tower_gives_vectors_of_the_presets_width(name: str) -> None:
    """mobilenetv3 and 4 end in a convolution that open_clip does not count."""
    tower = TowerConfig(timm=name)
    config = replace(preset("tiny"), student=tower, teacher=tower, preprocess=PreprocessSpec(size=160))
    with torch.no_grad():
        for encoder in (build_student(config).eval(), build_teacher(config).image.eval()):
            assert encoder(torch.rand(2, 3, 160, 160)).shape == (2, config.dim)


def test_a_local_checkpoint_is_where_training_starts(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {k: torch.full_like(v, 0.25) for k, v in build_teacher(preset("tiny")).model.state_dict().items()}
    save_file(state, tmp_path / "start.safetensors")
    teacher = build_teacher(with_teacher(timm="vitrine_residual_w8", pretrained=str(tmp_path / "start.safetensors")))
    assert float(teacher.model.visual.head.proj.weight.detach().mean()) == 0.25
