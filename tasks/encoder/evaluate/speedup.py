"""Speedup of the query encoder over the teacher, measured side by side on the exported files."""

import statistics
import time

import numpy as np

from serving.contract.encoder import Encoder, EncoderFolder

FASTER = "query.times_faster_than_teacher"
"""The name of the figure among a version's metrics."""
ROUNDS = 15
THREADS = 1
"""As a replica runs one query."""


def measure_speedup(opened: EncoderFolder, query: str, document: str, rounds: int = ROUNDS) -> float:
    """How many times faster `query` encodes one picture than `document`: the median over alternating rounds.

    The median of each round's ratio is taken, so a disturbance counts only when it hits one of the two.
    """
    size = opened.manifest.preprocess.size
    picture = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    quick, slow = (opened.open(name, THREADS) for name in (query, document))
    ratios = []
    for _ in range(rounds + 1):
        ratios.append(_seconds(slow, picture) / _seconds(quick, picture))
    return statistics.median(ratios[1:])


def _seconds(encoder: Encoder, picture: np.ndarray) -> float:
    began = time.perf_counter()
    encoder.encode(picture)
    return time.perf_counter() - began
