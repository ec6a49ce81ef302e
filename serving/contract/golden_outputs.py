"""Golden outputs: the vectors that an encoder gave when it was exported, which every runtime must reproduce."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.contract.files import ContractError


@dataclass(frozen=True)
class Tolerance:
    """How far a runtime's golden outputs may differ from the recorded ones."""

    min_cosine: float
    max_difference: float = 1.0


TOLERANCES = {"fp32": Tolerance(0.99999, 1e-4), "fp16": Tolerance(0.999), "int8": Tolerance(0.995)}
"""By precision. CPUs and runtimes round differently: fp32 by about 1e-6, bfloat16 to a cosine of 0.9999, int8 kernels to 0.9995."""


def read_golden_outputs(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The golden inputs of "tower.variant", pixels or tokens, and its outputs (n, dim) float32. Raises ContractError."""
    with np.load(path, allow_pickle=False) as golden:
        if name not in golden:
            raise ContractError(f"{name}: the encoder version holds no golden outputs of it")
        return golden["tokens" if name.startswith("text.") else "pixels"], golden[name]


def check_golden_outputs(name: str, found: np.ndarray, expected: np.ndarray, runtime: str) -> None:
    """Raises ContractError unless what a runtime gave is what "tower.variant" gave, both (n, dim) float32, within its tolerance."""
    if found.shape != expected.shape:
        raise ContractError(f"{name}: golden outputs have shape {expected.shape}, the model gives {found.shape}")
    cosine, difference = float((found * expected).sum(axis=1).min()), float(np.abs(found - expected).max())
    allowed = TOLERANCES[name.partition(".")[2]]
    if not (cosine >= allowed.min_cosine and difference <= allowed.max_difference):
        raise ContractError(
            f"{name}: golden outputs are not reproduced by {runtime} (least cosine {cosine:.5f}, allowed "
            f"{allowed.min_cosine}; largest difference {difference:.2g}, allowed {allowed.max_difference:g})"
        )
