"""Builds teacher and student: open_clip models by name or from our own configs, and timm towers."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from tasks.encoder.config import EncoderConfig, Precision
from tasks.encoder.data.tokenizer import TOKENIZER, build_tokenizer, clip_tokenizer, read_tokenizer, write_tokenizer
from tasks.encoder.train.open_clip_models import (
    CONFIG_FILE,
    Architecture,
    create_model,
    find_architecture,
    load_weights,
    weights_path,
)
from tasks.encoder.train.timm_models import TIMM, build_tower, custom_config, fit_tower, no_tower, statistics
from tasks.encoder.train.weights import is_checkpoint, load_into, read_state_dict
from tasks.errors import TrainingError

log = logging.getLogger(__name__)

CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What torch.cpu.get_capabilities() calls instructions that compute in bf16, on x86 and on ARM."""


class ImageEncoder(nn.Module):
    """Pictures (n, 3, s, s) in [0, 1] to unit vectors (n, dim); normalising by mean and deviation happens inside.

    Pictures larger than `size`, where it is given, are shrunk first: an encoder version has one size of pictures for all towers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tower: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], size: int = 0) -> None:
        super().__init__()
        self.tower, self.size = tower, size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        x = (shrink(pictures, self.size) - self.mean) / self.std
        return functional.normalize(self.tower(x.contiguous(memory_format=torch.channels_last)).float(), dim=-1)


def shrink(pictures: Tensor, size: int) -> Tensor:
    """Pictures (n, 3, s, s) at the side `size`; as they are when that is 0 or not smaller than s."""
    side = pictures.shape[-1]
    if not size or size >= side:
        return pictures
    if side % size == 0:  # plain averages: cheaper than to interpolate
        return functional.avg_pool2d(pictures, side // size)
    return functional.interpolate(pictures, (size, size), mode="bilinear", antialias=True)


class TextEncoder(nn.Module):
    """Tokens (n, context) int64 to unit vectors (n, dim)."""

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.normalize(self.model.encode_text(tokens).float(), dim=-1)


class Teacher(nn.Module):
    """An open_clip model as an image encoder and a text encoder of one space. `tokenizer` builds that of its texts."""

    model: Any

    def __init__(self, model: Any, architecture: Architecture, tokenizer: Callable[[], Tokenizer]) -> None:
        super().__init__()
        self.model, self.architecture, self.tokenizer = model, architecture, tokenizer
        seen = architecture.preprocess
        self.image = ImageEncoder(model.visual, tuple(seen["mean"]), tuple(seen["std"]))
        self.text = TextEncoder(model)

    def scale(self) -> Tensor:
        """The learned inverse temperature of the image-text loss, at most 100 as in CLIP."""
        return self.model.logit_scale.exp().clamp(max=100.0)

    def context(self) -> int:
        return int(self.model.context_length)

    def state(self) -> dict[str, Tensor]:
        """open_clip's own state dict: its names, each tensor once."""
        return self.model.state_dict()

    def write_architecture(self, folder: Path, size: int) -> None:
        """Writes beside the weights what opens them again: open_clip's config of the model, and its tokenizer."""
        self.architecture.write(folder, size)
        write_tokenizer(self.tokenizer(), folder / TOKENIZER)


def build_teacher(config: EncoderConfig, load_pretrained: bool = True) -> Teacher:
    """The teacher with initial weights. Raises TrainingError when its name, its weights or their shapes are not as they must be."""
    torch.manual_seed(config.seed)
    if config.teacher.timm:
        return _timm_teacher(config, load_pretrained)
    tower, size = config.teacher, config.preprocess.size
    architecture = find_architecture(tower)
    if architecture.dim != config.dim:
        raise TrainingError(f"{tower.open_clip} gives vectors of {architecture.dim} numbers, the preset says dim={config.dim}")
    path = weights_path(tower) if load_pretrained else None
    first_size = architecture.size if path is not None and architecture.on_timm else size
    model = create_model(architecture, first_size)
    if path is not None:
        load_weights(model, path, tower.open_clip)
    if first_size != size:  # timm resizes position embeddings that it has loaded, open_clip while it loads them
        model.visual.set_input_size(size)
    return Teacher(model, architecture, partial(build_tokenizer, architecture, tower.open_clip))


def _timm_teacher(config: EncoderConfig, load_pretrained: bool) -> Teacher:
    tower, size = config.teacher, config.preprocess.size
    try:
        model = open_clip.CLIP(**custom_config(config, load_pretrained and tower.pretrained == TIMM))
    except Exception as error:  # unknown names and failed downloads arrive as various classes
        raise no_tower(tower, error) from None
    path = Path(tower.pretrained)
    whole = read_state_dict(path) if load_pretrained and is_checkpoint(tower.pretrained) else {}
    both_towers = set(whole) == set(model.state_dict())
    fit_tower(model.visual, tower, config.dim, size, load_pretrained and not both_towers)
    if both_towers:
        load_into(model, whole, path, tower.timm)
    mean, std = statistics(tower, model.visual.trunk)
    seen = {"size": size, "mean": mean, "std": std, "resize_mode": "squash"}
    return Teacher(model, Architecture(custom_config(config), seen), partial(clip_tokenizer, config.text.context))


def open_teacher(folder: Path, config: EncoderConfig) -> Teacher:
    """The teacher whose architecture and tokenizer lie in `folder`, with random weights: neither its name nor the hub is asked."""
    architecture = Architecture.read(folder / CONFIG_FILE)
    if config.teacher.timm:
        built = _timm_teacher(config, load_pretrained=False)
        return Teacher(built.model, architecture, built.tokenizer)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    return Teacher(create_model(architecture, architecture.size), architecture, lambda: tokenizer)


def build_student(config: EncoderConfig, load_pretrained: bool = True) -> ImageEncoder:
    """The student's image tower with initial weights, of the teacher's output dimension. Raises TrainingError."""
    torch.manual_seed(config.seed + 1)
    tower = config.student
    network = build_tower(tower, config.dim, tower.size or config.preprocess.size, load_pretrained)
    return ImageEncoder(network, *statistics(tower, network.trunk), tower.size)


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
