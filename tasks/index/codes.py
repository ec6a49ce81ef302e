"""What the codes of a fast scan describe: the vectors, or their residuals (what is left of them beside the centroid of their list).

Neither orders near vectors better everywhere, and the size of the error does not tell which does: an error that all neighbours
share leaves their order alone. So both are trained and tried (docs/decisions/0062).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.index.coarse import lists_of

HELD_OUT, AMONG = 256, 20_000
"""Training vectors that ask, and the others that they are to find."""
NEAREST, WITHIN = 10, 50


@dataclass(frozen=True)
class Trial:
    """Mean recall of the true ten nearest within 50 by codes of the residuals and by codes of the vectors."""

    of_residuals: float
    of_vectors: float

    def __str__(self) -> str:
        better, worse = ("residuals", "vectors") if self.of_residuals > self.of_vectors else ("vectors", "residuals")
        kept, left = max(self.of_residuals, self.of_vectors), min(self.of_residuals, self.of_vectors)
        return f"codes of {better} hold {kept:.3f} of the ten nearest within {WITHIN} in a trial, codes of {worse} {left:.3f}"


def choose_codes(index: Any, sample: np.ndarray, seed: int) -> Trial | None:
    """Gives a trained, empty fast-scan index the kind of codes that finds more of a training sample (n, d) float32.

    None, and the index as it is, for every other kind of index.
    """
    import faiss

    lists = lists_of(index)
    if not isinstance(lists, faiss.IndexIVFPQFastScan):
        return None
    other = faiss.clone_index(lists)
    other.by_residual, other.is_trained = not lists.by_residual, False  # the lists stay: only the codes are trained
    other.train(sample)
    order = np.random.default_rng(seed).permutation(len(sample))
    asking = min(HELD_OUT, len(sample) // 10)
    xq, xb = sample[order[:asking]], sample[order[asking : asking + AMONG]]
    nearest = faiss.knn(xq, xb, min(NEAREST, len(xb)), metric=lists.metric_type)[1]
    found = {bool(i.by_residual): _recall(i, xb, xq, nearest) for i in (lists, other)}
    if found[bool(other.by_residual)] > found[bool(lists.by_residual)]:
        lists.by_residual, lists.pq = other.by_residual, other.pq
    return Trial(of_residuals=found[True], of_vectors=found[False])


def _recall(index: Any, xb: np.ndarray, xq: np.ndarray, nearest: np.ndarray) -> float:
    """How many of the rows `nearest` (nq, k) an index of its own over xb holds within 50, no list left out."""
    import faiss

    trial = faiss.clone_index(index)
    trial.add(xb)
    rows = trial.search(xq, min(WITHIN, len(xb)), params=faiss.SearchParametersIVF(nprobe=trial.nlist))[1]
    return float(np.mean([np.isin(t, r).mean() for t, r in zip(nearest, rows, strict=True)]))
