"""Builds teacher and student: open_clip models by name or from our own configs, and timm towers."""

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tasks.encoder.presets import EncoderConfig, Precision, TowerConfig
from tasks.encoder.train import residual_net as residual  # noqa: F401  registers the demo's towers with timm
from tasks.errors import TrainingError

log = logging.getLogger(__name__)

VOCABULARY = 49408
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What torch.cpu.get_capabilities() calls instructions that compute in bf16, on x86 and on ARM."""
PLAIN_MEAN, PLAIN_STD = (0.45, 0.45, 0.45), (0.27, 0.27, 0.27)


class ImageEncoder(nn.Module):
    """Pictures (n, 3, s, s) in [0, 1] to unit vectors (n, dim); normalising by mean and deviation happens inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, tower: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        x = (pictures - self.mean) / self.std
        return functional.normalize(self.tower(x.contiguous(memory_format=torch.channels_last)).float(), dim=-1)


class TextEncoder(nn.Module):
    """Tokens (n, context) int64 to unit vectors (n, dim)."""

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.normalize(self.model.encode_text(tokens).float(), dim=-1)


class Teacher(nn.Module):
    """An open_clip model as an image encoder and a text encoder of one space."""

    model: Any

    def __init__(self, model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.image = ImageEncoder(model.visual, mean, std)
        self.text = TextEncoder(model)

    def scale(self) -> Tensor:
        """The learned inverse temperature of the image-text loss, at most 100 as in CLIP."""
        return self.model.logit_scale.exp().clamp(max=100.0)

    def context(self) -> int:
        return int(self.model.context_length)

    def state(self) -> dict[str, Tensor]:
        """open_clip's own state dict: its names, each tensor once."""
        return self.model.state_dict()


def build_teacher(config: EncoderConfig, load_pretrained: bool = True) -> Teacher:
    """The teacher with initial weights. Raises TrainingError when weights are missing or do not fit."""
    torch.manual_seed(config.seed)
    tower = config.teacher
    if tower.open_clip:
        model = _named(tower, config, load_pretrained)
        mean, std = tuple(model.visual.image_mean), tuple(model.visual.image_std)
    else:
        model = open_clip.CLIP(**custom_config(config))
        _fit_head(model.visual, config.dim)
        mean, std = PLAIN_MEAN, PLAIN_STD
        if load_pretrained and tower.pretrained:
            _load_local(model, Path(tower.pretrained))
    return Teacher(model, mean, std)


def custom_config(config: EncoderConfig) -> dict[str, Any]:
    """open_clip's config of a teacher with a timm image tower."""
    text = config.text
    return {
        "embed_dim": config.dim,
        "vision_cfg": {
            "timm_model_name": config.teacher.timm,
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": config.preprocess.size,
        },
        "text_cfg": {
            "context_length": text.context,
            "vocab_size": VOCABULARY,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
    }


def _named(tower: TowerConfig, config: EncoderConfig, load_pretrained: bool) -> Any:
    name = _own_config(tower.open_clip) if tower.open_clip.endswith(".json") else tower.open_clip
    if name not in open_clip.list_models():
        raise TrainingError(f"open_clip has no model {name!r}; `open_clip.list_models()` names those it has")
    pretrained = tower.pretrained if load_pretrained else ""
    is_file = Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors")
    if is_file and not Path(pretrained).is_file():
        raise TrainingError(f"the checkpoint {pretrained} of {tower.open_clip} does not exist; give the path of a local file")
    known = open_clip.list_pretrained_tags_by_model(name)
    if pretrained and not is_file and pretrained not in known:
        raise TrainingError(f"open_clip has no weights {pretrained!r} for {tower.open_clip}; it has {', '.join(known)}")
    try:
        model = open_clip.create_model(name, pretrained=pretrained or None, force_image_size=config.preprocess.size)
    except Exception as error:  # a download fails in as many ways as there are networks; all mean the same to the reader
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "the checkpoint cannot be read" if is_file else "the weights could not be downloaded"
        raise TrainingError(
            f"{tower.open_clip} with pretrained={pretrained!r}: {what} ({first[:160]}); "
            "set `pretrained` to a local checkpoint file, or to '' to start from random weights"
        ) from None
    width = int(model.text_projection.shape[1]) if getattr(model, "text_projection", None) is not None else config.dim
    if width != config.dim:
        raise TrainingError(f"{tower.open_clip} gives vectors of {width} numbers, the preset says dim={config.dim}")
    return model


def _own_config(path: str) -> str:
    """Tells open_clip of a model config in a file; gives the name it has there."""
    try:
        keys = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"the model config {path} cannot be read: {error}") from None
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(keys)
    if missing:
        raise TrainingError(f"the model config {path} lacks {', '.join(sorted(missing))}; it must be in open_clip's format")
    open_clip.add_model_config(path)
    return Path(path).stem


def build_student(config: EncoderConfig, load_pretrained: bool = True) -> ImageEncoder:
    """The student's image tower with initial weights, of the teacher's output dimension."""
    torch.manual_seed(config.seed + 1)
    tower = config.student
    from_timm = load_pretrained and tower.pretrained == "timm"
    pool = "" if tower.timm.startswith("vitrine_") or tower.timm.startswith("vit_") else "avg"
    try:
        network = TimmModel(tower.timm, config.dim, image_size=config.preprocess.size, pool=pool, pretrained=from_timm)
    except Exception as error:  # unknown names and failed downloads arrive as various classes
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainingError(f"the student {tower.timm!r} cannot be built: {first[:200]}; name a timm model") from None
    _fit_head(network, config.dim)
    if load_pretrained and tower.pretrained and not from_timm:
        _load_local(network, Path(tower.pretrained))
    return ImageEncoder(network, PLAIN_MEAN, PLAIN_STD)


def _fit_head(tower: TimmModel, dim: int) -> None:
    """Projects from the width that timm gives: open_clip counts before a head's own convolution, as mobilenetv3 and 4 have one."""
    wide = getattr(tower.trunk, "head_hidden_size", tower.trunk.num_features)
    if wide != tower.trunk.num_features:
        tower.head.proj = nn.Linear(wide, dim, bias=False)


def _load_local(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise TrainingError(f"the checkpoint {path} does not exist; give the path of a local safetensors file")
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch have their own classes for every kind of damage
        first = str(error).strip().splitlines()[0]
        raise TrainingError(f"the checkpoint {path} does not fit this model: {first[:200]}") from None


def parameters(module: nn.Module) -> int:
    """Number of weights of a network."""
    return sum(p.numel() for p in module.parameters())


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def training_precision(precision: Precision, where: torch.device) -> Precision:
    """The precision to train in on this device: fp32 where bf16 would be emulated at a tenth of its speed (docs/benchmarks.md)."""
    if precision == "bf16" and where.type == "cpu" and not any(torch.cpu.get_capabilities().get(name) for name in CPU_BF16):
        log.info("this processor only emulates bf16: training in fp32")
        return "fp32"
    return precision
