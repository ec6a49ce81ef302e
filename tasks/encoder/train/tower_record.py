"""The record of a trained tower that the steps of a training hand to each other."""

from dataclasses import dataclass
from typing import Literal

from serving.contract.provenance import Origin
from tasks.records import Record


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
