"""What gpu_check measures with: image towers with random weights, drawn JPEGs, and the ways from one to pixels.

Needs torch and timm alone, so that it runs on a GPU machine's own Python. open_clip is taken where it can be imported, or from the
folder that `gpu_check --carry` filled; without it timm's towers of the same shapes stand in, and the rows say so.
"""

import importlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

CARRIED = Path("build/carried")
"""Packages that were carried along, for where they are missing."""
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
JPEG_SIDE, JPEGS = 500, 256
"""Side of the drawn product pictures in pixels, and how many are drawn; they are used again and again."""


@dataclass(frozen=True)
class Model:
    """A network by its name in open_clip and by timm's nearest, and the side of its pictures."""

    name: str
    open_clip: str
    timm: str
    size: int


B32 = Model("CLIP B/32", "ViT-B-32", "vit_base_patch32_224", 224)
B16 = Model("CLIP B/16", "ViT-B-16", "vit_base_patch16_224", 224)
SIGLIP2 = Model("SigLIP2 B/16-256", "ViT-B-16-SigLIP2-256", "vit_base_patch16_siglip_256", 256)
TINY = Model("timm's test_vit", "", "test_vit", 160)


class ImageEncoder(nn.Module):
    """Pixels (n, size, size, 3) uint8 to unit vectors (n, d) float32; normalising is inside, as in an exported graph."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        return functional.normalize(self.tower((x - self.mean) / self.std).float(), dim=-1)


def import_open_clip() -> Any:
    """open_clip, from CARRIED where it is not installed; None where neither can be imported."""
    for place in ("", str(CARRIED.resolve())):
        if place and place not in sys.path:
            sys.path.append(place)
        try:
            return importlib.import_module("open_clip")
        except ImportError:
            continue
    return None


def build(model: Model, device: str) -> tuple[ImageEncoder, str]:
    """A model's image encoder with random weights on a device, and which package made it."""
    open_clip = import_open_clip() if model.open_clip else None
    if open_clip is not None:
        tower, maker = open_clip.create_model(model.open_clip, pretrained=None, load_weights=False).visual, "open_clip"
    else:
        import timm

        tower, maker = timm.create_model(model.timm, pretrained=False, num_classes=0), "timm"
    return ImageEncoder(tower).to(device), maker


def draw_jpegs(count: int = JPEGS, side: int = JPEG_SIDE) -> list[bytes]:
    """Product pictures: coarse blocks with a little noise, JPEGs of quality 90."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        blocks = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        noisy = np.asarray(blocks, np.int16) + rng.integers(-8, 9, (side, side, 1), dtype=np.int16)
        stream = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found


def decode_plain(data: bytes, size: int) -> np.ndarray:
    """Pixels (size, size, 3) uint8 by Pillow, at full size and bicubic: what a first script does."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def our_decoder(size: int) -> tuple[Callable[[bytes], np.ndarray], str]:
    """The pipeline's own decoder, or Pillow's reduced decoding where its packages are not installed; and which it is."""
    try:
        from serving.contract.preprocess import PreprocessSpec, decode
    except ImportError:

        def reduced(data: bytes) -> np.ndarray:
            picture = Image.open(io.BytesIO(data))
            picture.draft("RGB", (size, size))
            return np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BOX))

        return reduced, "Pillow, reduced"
    spec = PreprocessSpec(size=size)
    return lambda data: decode(data, spec), "serving.contract.preprocess"


def decode_on_gpu(jpegs: Sequence[bytes], size: int, device: str) -> Tensor:
    """Pixels (n, size, size, 3) uint8 on the device, by torchvision's nvJPEG."""
    from torchvision.io import decode_jpeg

    raw = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in jpegs]
    decoded = decode_jpeg(raw, device=device)
    small = [functional.interpolate(p[None].float(), (size, size), mode="bilinear", antialias=True) for p in decoded]
    return torch.cat(small).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
