"""The record of a trained tower that the steps of a training hand to each other."""

from dataclasses import dataclass
from typing import Literal

from serving.contract.provenance import Origin
from tasks.records import Record


@dataclass(frozen=True)
class Interpolated(Record):
    """Recall of the weights that are `share` of the way from the pretrained ones to the trained ones."""

    share: float
    recall_at_1: float
    recall_at_10: float
    mrr: float


@dataclass(frozen=True)
class Interpolation(Record):
    """The share that was taken, chosen on `photos` train photos that were not trained on, and all that were tried."""

    share: float
    photos: int
    tried: tuple[Interpolated, ...]


@dataclass(frozen=True)
class TrainedTower(Record):
    """A trained tower: the folder (a URI) of its weights, and the cost of its training."""

    tower: str
    uri: str
    key: str
    steps: int
    parameters: int
    final_loss: float
    seconds: float
    cpu_seconds: float
    images_per_s: float
    peak_memory_bytes: int
    precision: Literal["bf16", "fp32"]
    origin: Origin | None = None
    """Of the weights that it started from; None for random ones."""
    interpolation: Interpolation | None = None
