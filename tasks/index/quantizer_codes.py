"""PQ codes of a fast scan: of vectors or residuals, and anisotropic assignment of codes to vectors.

They describe the vectors, or their residuals (what is left of them beside the centroid of their list). Neither orders near vectors
better everywhere, and the size of the error does not tell which does: an error that all neighbours share leaves their order alone.
So both are trained and tried (docs/decisions/0062).

A vector gets not the nearest code but one whose error is small along the vector itself: that part of it is what changes the
similarity of those who ask from nearby (docs/decisions/0063).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.index.coarse import ivf_view

HELD_OUT, AMONG = 256, 20_000
"""Training vectors that ask, and the others that they are to find."""
NEAREST, WITHIN = 10, 20
ALONG = 4.0
"""How many times as much the error along a vector weighs as the error across it: the ratio of the two weights of the score-aware
loss of Guo et al. 2020, "Accelerating Large-Scale Inference with Anisotropic Vector Quantization". 4 is from trials of our own
(docs/benchmarks.md, "Codes that err across")."""
CHUNK = 4_096
"""Vectors worked on at once, so that what is computed of them stays in the caches."""


@dataclass(frozen=True)
class CodesComparison:
    """Mean recall of the true top ten within twenty, with residual codes and with vector codes."""

    of_residuals: float
    of_vectors: float

    def __str__(self) -> str:
        better, worse = ("residuals", "vectors") if self.of_residuals > self.of_vectors else ("vectors", "residuals")
        kept, left = max(self.of_residuals, self.of_vectors), min(self.of_residuals, self.of_vectors)
        return f"codes of {better} hold {kept:.3f} of the ten nearest within {WITHIN} in a trial, codes of {worse} {left:.3f}"


def choose_codes(index: Any, sample: np.ndarray, seed: int) -> CodesComparison | None:
    """Sets by_residual of a trained, empty fast-scan index to the better of both on a training sample (n, d) float32.

    None, and the index as it is, for every other kind of index.
    """
    import faiss

    lists = _fast_scan(index)
    if lists is None:
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
    return CodesComparison(of_residuals=found[True], of_vectors=found[False])


@contextmanager
def code_adder(index: Any, along: float = ALONG) -> Iterator[Callable[[np.ndarray], None]]:
    """Context manager that yields a function adding vectors (n, d) float32 to a trained, empty index; done when the block ends.

    As `index.add`, but for the codes of a fast scan, whose files are what FAISS itself writes: only which code a vector gets differs.
    """
    import faiss

    lists = _fast_scan(index)
    if lists is None:
        yield index.add
        return
    # FAISS takes codes that are given to it (add_sa_codes) where they lie one after the other, not in the blocks of a fast scan.
    plain = faiss.IndexIVFPQ(lists.quantizer, lists.d, lists.nlist, lists.pq.M, lists.pq.nbits, lists.metric_type)
    plain.pq, plain.by_residual, plain.is_trained = lists.pq, lists.by_residual, True
    refined = faiss.downcast_index(index)
    centroids = lists.quantizer.reconstruct_n(0, lists.nlist)  # before `fast_adding` puts another quantiser there for a while

    def add(vectors: np.ndarray) -> None:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if not len(vectors):
            return
        plain.add_sa_codes(_codes(lists, centroids, vectors, along))
        if isinstance(refined, faiss.IndexRefine):
            faiss.downcast_index(refined.refine_index).add(vectors)

    yield add
    packed = faiss.IndexIVFPQFastScan(plain, lists.bbs)
    lists.replace_invlists(packed.invlists, True)
    packed.own_invlists = False
    lists.ntotal = refined.ntotal = packed.ntotal


def _codes(lists: Any, centroids: np.ndarray, vectors: np.ndarray, along: float) -> np.ndarray:
    """Input of FAISS's add_sa_codes for vectors (n, d): list number and packed code of each, uint8."""
    import faiss

    nearest = lists.quantizer.search(vectors, 1)[1][:, 0]
    rest = vectors - centroids[nearest] if lists.by_residual else vectors
    codes = lists.pq.compute_codes(rest)
    books = faiss.vector_to_array(lists.pq.centroids).reshape(lists.pq.M, lists.pq.ksub, lists.pq.dsub)
    places = [slice(start, start + CHUNK) for start in range(0, len(vectors), CHUNK)]
    with ThreadPoolExecutor(max(1, faiss.omp_get_max_threads())) as pool:
        better = list(pool.map(lambda s: refine_codes(codes[s], rest[s], vectors[s], books, along), places))
    number = nearest.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : lists.coarse_code_size()]
    return np.ascontiguousarray(np.concatenate([number, np.concatenate(better)], axis=1))


def refine_codes(codes: np.ndarray, described: np.ndarray, vectors: np.ndarray, books: np.ndarray, along: float) -> np.ndarray:
    """One round of coordinate descent on codes of M 4-bit words, (n, M / 2) uint8: each word in turn minimises the error.

    `described` (n, d) is what is coded, `vectors` (n, d) whose direction counts, `books` (M, 16, d / M) the codebooks. What
    is least is |e|^2 + (along - 1) (e u)^2, with the error e of a code and the unit vector u. One round; more of them gain nothing.
    """
    parts, words, width = books.shape
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length > 0, length, 1)
    r, u = (x.reshape(-1, parts, width).transpose(1, 0, 2) for x in (described, unit))
    transposed = books.transpose(0, 2, 1)
    across = (books**2).sum(axis=2)[:, None] - 2 * np.matmul(r, transposed)  # |e|^2 of each word but for |r|^2: (M, n, 16)
    beside = np.einsum("mnd,mnd->mn", r, u)[:, :, None] - np.matmul(u, transposed)  # e u of each word: (M, n, 16)
    chosen = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)[:, :parts].T.astype(np.intp)
    rows = np.arange(len(codes)) * words
    total = sum(beside[m].take(rows + chosen[m]) for m in range(parts))
    for m in range(parts):
        whole = beside[m] + (total - beside[m].take(rows + chosen[m]))[:, None]
        chosen[m] = (across[m] + (along - 1) * whole * whole).argmin(axis=1)
        total = whole.take(rows + chosen[m])
    packed = chosen[0::2].T.astype(np.uint8)
    packed[:, : parts // 2] |= chosen[1::2].T.astype(np.uint8) << 4
    return packed


def _fast_scan(index: Any) -> Any:
    """The 4-bit fast-scan IVF index inside an index; None when there is none."""
    import faiss

    lists = ivf_view(index)
    return lists if isinstance(lists, faiss.IndexIVFPQFastScan) else None


def _recall(index: Any, xb: np.ndarray, xq: np.ndarray, nearest: np.ndarray) -> float:
    """Share of the rows `nearest` (nq, k) within the top twenty of a clone of the index filled with xb, all lists probed."""
    import faiss

    trial = faiss.clone_index(index)
    with code_adder(trial) as add:
        add(xb)
    rows = trial.search(xq, min(WITHIN, len(xb)), params=faiss.SearchParametersIVF(nprobe=trial.nlist))[1]
    return float(np.mean([np.isin(t, r).mean() for t, r in zip(nearest, rows, strict=True)]))
