"""The search parameters: the cheapest that reach the recall target on shoppers' photos, never on database vectors."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serving.contract.manifest import Scalar
from serving.searcher import Found, Searcher
from tasks.errors import GateFailed
from tasks.index.families import FAMILIES
from tasks.index.metrics import neighbour_recall

K = 10
CANDIDATES = 500
LEAST_QUERIES = 20


@dataclass(frozen=True)
class Trial:
    """One point that was measured: recall@10 of the answer, of the true top 10 within the candidates, and time per query."""

    params: dict[str, Scalar]
    recall_at_10: float
    within_candidates: float
    p50_ms: float
    p99_ms: float
    verdict: str = ""


@dataclass(frozen=True)
class Tuned:
    """The chosen parameters with the trial behind them, and every trial with its verdict."""

    search: dict[str, Scalar]
    chosen: dict[str, Any]
    trials: list[dict[str, Any]]
    queries: int


def tune(searcher: Searcher, xq: np.ndarray, family: str, target: float) -> Tuned:
    """Tries the family's grid over queries xq (nq, d) and takes the fastest point whose recall@10 reaches `target`.

    The truth is exact search over the encoder's vectors as stored. Raises GateFailed with the best point when none qualifies.
    """
    candidates = min(CANDIDATES, max(searcher.live_rows, 1))
    truth = searcher.exact(xq, K)
    trials = [_measure(searcher, xq, truth, params, candidates) for params in FAMILIES[family].grid]
    good = [t for t in trials if t.recall_at_10 >= target]
    if not good:
        best = max(trials, key=lambda t: t.recall_at_10)
        raise GateFailed(
            f"no parameters of {family} reach recall@10 {target:.3f}: the best, {best.params}, has {best.recall_at_10:.3f}; "
            "choose another family or lower VITRINE_RECALL_TARGET"
        )
    chosen = min(good, key=lambda t: t.p50_ms)
    rows = [asdict(t) | {"verdict": _verdict(t, chosen, target)} for t in trials]
    search: dict[str, Scalar] = {"family": family, "candidates": CANDIDATES, **chosen.params}
    return Tuned(search, asdict(chosen), rows, len(xq))


def _measure(searcher: Searcher, xq: np.ndarray, truth: Found, params: dict[str, Scalar], candidates: int) -> Trial:
    searcher.search(xq[:1], candidates, params=params)
    times, found = [], []
    for q in range(len(xq)):
        began = time.perf_counter()
        found.append(searcher.search(xq[q : q + 1], candidates, params=params))
        times.append(1e3 * (time.perf_counter() - began))
    recall = neighbour_recall(np.concatenate([f.similarity for f in found]), truth.similarity, K)
    within = float(np.mean([np.isin(t[t >= 0], f.rows[0]).mean() for t, f in zip(truth.rows, found, strict=True)]))
    return Trial(params, recall, within, float(np.percentile(times, 50)), float(np.percentile(times, 99)))


def _verdict(trial: Trial, chosen: Trial, target: float) -> str:
    if trial is chosen:
        return "chosen: the fastest that reaches the target"
    if trial.recall_at_10 < target:
        return f"recall {trial.recall_at_10:.3f} is below {target:.3f}"
    return f"slower: {trial.p50_ms:.2f} ms against {chosen.p50_ms:.2f} ms"
