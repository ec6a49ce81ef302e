"""Augmentation of a whole batch by a few tensor operations on its device, cheap enough never to be the bottleneck."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Strength of the augmentation. Angles in degrees; other values are fractions."""

    least_area: float = 0.35
    aspect: float = 1.33
    rotation: float = 20.0
    flip: bool = True
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    tint: float = 0.06
    erase: float = 0.25
    """Share of pictures that lose a rectangle."""


def augment(pixels: Tensor, size: int, how: Augmentation, generator: torch.Generator, first: int = 0, whole: int = 0) -> Tensor:
    """Augmented pictures (n, 3, size, size) float32 in [0, 1] from `pixels` (n, s, s, 3) uint8.

    All chance comes from `generator` (a CPU one, so that every device draws the same). Where `pixels` are the pictures from
    `first` on of a batch of `whole`, each is changed as it would be in the whole batch.
    """
    device = pixels.device
    rows = slice(first, first + len(pixels))

    def draw(columns: int) -> Tensor:
        return torch.rand((whole or len(pixels), columns), generator=generator)[rows]

    pictures = pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
    grid = functional.affine_grid(_placement(draw(6), how).to(device), [len(pixels), 3, size, size], align_corners=False)
    pictures = functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    pictures = _colour(pictures, how, draw(6).to(device))
    return _erase(pictures, how, draw(4).to(device))


def to_float(pixels: Tensor) -> Tensor:
    """Pictures (n, 3, s, s) float32 in [0, 1] without augmentation."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)


def _placement(u: Tensor, how: Augmentation) -> Tensor:
    """Affine maps (n, 2, 3) from the result's square [-1, 1]^2 into the source's: a turned, mirrored crop that stays inside.

    `u` (n, 6) in [0, 1) is the chance; so it is in `_colour` and `_erase`.
    """
    n = len(u)
    area = how.least_area + (1 - how.least_area) * u[:, 0]
    log_aspect = math.log(how.aspect) * (2 * u[:, 1] - 1)
    half_w = (area.sqrt() * (log_aspect / 2).exp()).clamp(max=1.0)
    half_h = (area.sqrt() * (-log_aspect / 2).exp()).clamp(max=1.0)
    x, y = (1 - half_w) * (2 * u[:, 2] - 1), (1 - half_h) * (2 * u[:, 3] - 1)
    angle = math.radians(how.rotation) * (2 * u[:, 4] - 1)
    mirror = torch.where(u[:, 5] < 0.5, -1.0, 1.0) if how.flip else torch.ones(n)
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack([half_w * cos * mirror, -half_h * sin, x, half_w * sin * mirror, half_h * cos, y], dim=1)
    return rows.view(n, 2, 3)


def _colour(pictures: Tensor, how: Augmentation, u: Tensor) -> Tensor:
    n, u = len(pictures), 2 * u - 1
    brightness = (1 + how.brightness * u[:, 0]).view(n, 1, 1, 1)
    contrast = (1 + how.contrast * u[:, 1]).view(n, 1, 1, 1)
    saturation = (1 + how.saturation * u[:, 2]).view(n, 1, 1, 1)
    tint = (1 + how.tint * u[:, 3:6]).view(n, 3, 1, 1)
    mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
    grey = pictures.mean(dim=1, keepdim=True)
    changed = (grey + (pictures - grey) * saturation - mean) * contrast + mean
    return (changed * brightness * tint).clamp_(0.0, 1.0)


def _erase(pictures: Tensor, how: Augmentation, u: Tensor) -> Tensor:
    """Random erasing: a grey rectangle of 5 to 25 % of the area in a fraction of the pictures."""
    _, _, h, w = pictures.shape
    side = (0.05 + 0.2 * u[:, 1]).sqrt()
    y0, x0 = u[:, 2] * (1 - side), u[:, 3] * (1 - side)
    y = (torch.arange(h, device=pictures.device) + 0.5) / h
    x = (torch.arange(w, device=pictures.device) + 0.5) / w
    rows = (y >= y0[:, None]) & (y < (y0 + side)[:, None])
    columns = (x >= x0[:, None]) & (x < (x0 + side)[:, None])
    hidden = rows[:, None, :, None] & columns[:, None, None, :] & (u[:, 0] < how.erase)[:, None, None, None]
    return pictures.masked_fill(hidden, 0.5)
