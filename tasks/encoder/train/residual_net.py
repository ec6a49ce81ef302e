"""The small image tower of the presets that start from random weights: a nine-layer residual net, registered with timm.

With minutes of training and no pretrained weights, small pictures and many cheap steps win (docs/benchmarks.md); a mobile
network of the same cost stays below a colour histogram. The layout follows Page's DAWNBench ResNet-9.
"""

from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU, and a 2x2 max pool when `pool`."""

    def __init__(self, inputs: int, outputs: int, pool: bool = False) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
        super().__init__(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """Two blocks of unchanged width added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvBlock(width, width), ConvBlock(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResidualNet(nn.Module):
    """Pictures (n, 3, s, s) to features (n, 8 * width): the mean and the maximum over the last map, added."""

    def __init__(self, width: int = 32, num_classes: int = 0, **_: Any) -> None:
        super().__init__()
        w = width
        self.num_features = 8 * w
        self.features = nn.Sequential(
            ConvBlock(3, w),
            ConvBlock(w, 2 * w, pool=True),
            Residual(2 * w),
            ConvBlock(2 * w, 4 * w, pool=True),
            ConvBlock(4 * w, 8 * w, pool=True),
            Residual(8 * w),
        )
        self.default_cfg = {"input_size": (3, 64, 64), "pool_size": None, "num_classes": num_classes}
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's way to replace the last layer; 0 classes leave the pooled features."""
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x)
        return self.head(maps.mean(dim=(2, 3)) + torch.amax(maps, dim=(2, 3)))


@register_model
def vitrine_residual_w48(pretrained: bool = False, **kwargs: Any) -> ResidualNet:
    """The teacher's tower of the preset `small`: 3.7M parameters."""
    return ResidualNet(width=48, num_classes=kwargs.get("num_classes", 0))


@register_model
def vitrine_residual_w32(pretrained: bool = False, **kwargs: Any) -> ResidualNet:
    """The teacher's tower of `demo_random`: 1.6M parameters."""
    return ResidualNet(width=32, num_classes=kwargs.get("num_classes", 0))


@register_model
def vitrine_residual_w16(pretrained: bool = False, **kwargs: Any) -> ResidualNet:
    """The student's tower of the preset `small`: a ninth of its teacher's parameters."""
    return ResidualNet(width=16, num_classes=kwargs.get("num_classes", 0))


@register_model
def vitrine_residual_w14(pretrained: bool = False, **kwargs: Any) -> ResidualNet:
    """The student's tower of `demo_random`: a fifth of the teacher's parameters and operations."""
    return ResidualNet(width=14, num_classes=kwargs.get("num_classes", 0))


@register_model
def vitrine_residual_w8(pretrained: bool = False, **kwargs: Any) -> ResidualNet:
    """For tests: a few thousand parameters."""
    return ResidualNet(width=8, num_classes=kwargs.get("num_classes", 0))
