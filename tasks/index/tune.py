"""Tunes search parameters: the cheapest that meet the requirements on shoppers' photos, never on database vectors."""

import math
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from serving.contract.manifest import CANDIDATES, Scalar
from serving.index.recall import DEPTH, TIE
from serving.index.searcher import Searcher
from tasks.errors import GateFailed
from tasks.index.choice import Budget, Requirements, next_family
from tasks.index.cost_counter import CostCounter
from tasks.index.engine_families import buildable
from tasks.index.families import FAISS, Family, list_count, refine_grid
from tasks.index.ground_truth import GroundTruth, recall_against
from tasks.records import Record

K = 10
FAR_BELOW = 0.2
"""A trial whose recall on a first part of the queries lies this much below the target is not measured to its end."""
FIRST_PART = 64


@dataclass(frozen=True)
class TuningTrial:
    """One measured point: recall@10 of the answers, recall of the true top 10 within the candidates, latency.

    Times and queries per second are those of as many clients as were asked for, each with one query at a time. `work_us` is the
    work of a query by what the engines were asked (tasks/index/work), `again` how often it was searched again for finding too
    little, `queries` how many were asked. `pareto`: no other trial of all queries is both faster (p50) and better.
    """

    params: dict[str, Scalar]
    recall_at_10: float
    within_candidates: float
    p50_ms: float
    p99_ms: float
    qps: float = 0.0
    work_us: float = 0.0
    again: float = 0.0
    queries: int = 0
    verdict: str = ""
    pareto: bool = False


@dataclass(frozen=True)
class TuningResult(Record):
    """The chosen parameters and their trial, all trials with verdicts, and the reasons for the family.

    `refused` says why nothing was chosen: then the parameters and the trial are the best there were. `asked` says in words what
    the `queries` are.
    """

    search: dict[str, Scalar]
    chosen: dict[str, Any]
    trials: list[dict[str, Any]]
    queries: int
    clients: int = 1
    memory_bytes: int = 0
    families: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    asked: str = ""


class TuningRefused(GateFailed):
    """No parameters meet the requirements; `tuned` holds all trials."""

    def __init__(self, tuned: TuningResult) -> None:
        super().__init__(tuned.refused)
        self.tuned = tuned


def tune(
    searcher: Searcher,
    xq: np.ndarray,
    family: str,
    target: float,
    truth: GroundTruth | None = None,
    budget: Budget | None = None,
) -> TuningResult:
    """Measures the family's grid on queries xq (nq, d) over all shards and segments, and takes the cheapest that qualifies.

    Half steps between the grid's values are tried where they could be cheaper still. The files are read before anything is timed,
    as a replica does before it is ready. Cheapest by the work that was done (vectors scanned and refined, short searches repeated),
    so that the same input gives the same choice on a busy machine; time only decides whether p99 keeps to its limit with the
    budget's clients at once. `truth` is exact search over the encoder's own vectors (tasks/index/truth); without it, over the
    vectors the index stores. Raises TuningRefused when nothing qualifies, with the best point and the family to take instead.
    """
    kind = buildable(family)
    budget = budget or Budget()
    need = _requirements(searcher, target, budget)
    p99_ms, clients = budget.p99_ms, budget.clients
    files = sum(s.index.bytes for s in searcher.manifest.segments if s.index is not None)
    if files > budget.ram_bytes:
        refused = (
            f"{family} takes {files / 2**20:.0f} MiB for {searcher.vectors} vectors and {budget.ram_bytes / 2**20:.0f} MiB are allowed; "
            f"{_instead(next_family(kind, need, 'memory'))}allow more memory (VITRINE_INDEX_RAM_MB)"
        )
        raise TuningRefused(TuningResult({"family": family}, {}, [], len(xq), clients, files, refused=refused))
    candidates = min(CANDIDATES, max(searcher.live_rows, 1))
    truth = truth or stored_truth(searcher, xq)

    nlist = list_count(searcher.vectors)
    grid, finer = (_ordered(kind, searcher.vectors, nlist, candidates, points) for points in (kind.grid, refine_grid(kind.grid)))
    work = CostCounter(searcher, kind, nlist)

    def tried(points: list[dict[str, Scalar]]) -> list[TuningTrial]:
        return [_measure(work, xq, truth, params, candidates, target, clients) for params in points]

    work.searcher.search(xq, candidates, params=grid[-1])  # reads what any trial will: none waits for the disk
    least = {str(params): work.us(params, widening=False) / len(xq) for params in finer}
    trials = tried(grid)
    trials += tried(_between(finer, least, trials, target, p99_ms))
    trials.sort(key=lambda t: (t.work_us, finer.index(t.params)))
    reasons = [_refusal(t, target, p99_ms) for t in trials]
    chosen = next((n for n, reason in enumerate(reasons) if not reason), -1)
    rows = [
        asdict(t) | {"verdict": _verdict(n, chosen, reasons[n], trials), "pareto": _pareto(t, trials, len(xq))}
        for n, t in enumerate(trials)
    ]
    if chosen < 0:
        best = max(range(len(trials)), key=lambda n: trials[n].recall_at_10)
        refused = _why_none(kind, need, trials[best])
        raise TuningRefused(
            TuningResult(_search(family, trials[best]), rows[best], rows, len(xq), clients, files, refused=refused)
        )
    return TuningResult(_search(family, trials[chosen]), rows[chosen], rows, len(xq), clients, files)


def stored_truth(searcher: Searcher, xq: np.ndarray) -> GroundTruth:
    """Ground truth by exact search over the vectors stored in the index."""
    found = searcher.exact(xq, DEPTH)
    return GroundTruth(keys_of(searcher, found.rows), found.similarity)


def keys_of(searcher: Searcher, rows: np.ndarray) -> np.ndarray:
    """Product keys of row handles, -1 for none."""
    return np.where(rows < 0, -1, searcher.features.key[np.maximum(rows, 0)])


def _requirements(searcher: Searcher, target: float, budget: Budget) -> Requirements:
    """The requirements that a searcher's family was chosen for."""
    return Requirements(searcher.vectors, searcher.dim, searcher.manifest.shards, target, budget, os.cpu_count() or 1)


def _search(family: str, trial: TuningTrial) -> dict[str, Scalar]:
    return {"family": family, "candidates": CANDIDATES, **trial.params}


def _why_none(family: Family, need: Requirements, best: TuningTrial) -> str:
    """Why no parameters qualify, and what to do."""
    limit, found = need.budget.p99_ms, best.recall_at_10 >= need.target
    fits = f" and p99 {limit:g} ms" if limit < math.inf else ""
    other = "" if family.engine != FAISS else _instead(next_family(family, need, "p99" if found else "recall"))
    return (
        f"no parameters of {family.name} reach recall@10 {need.target:.3f}{fits}: the best, {best.params}, has "
        f"{best.recall_at_10:.3f} at p99 {best.p99_ms:.1f} ms; "
        f"{other}{'raise VITRINE_INDEX_P99_MS' if found else 'lower VITRINE_RECALL_TARGET'}"
    )


def _instead(family: str) -> str:
    return f"set VITRINE_INDEX_FAMILY={family} or " if family else "no other family is known to keep to the budget: "


def _between(
    finer: list[dict[str, Scalar]], least: dict[str, float], trials: list[TuningTrial], target: float, p99_ms: float
) -> list[dict[str, Scalar]]:
    """Points of the finer grid that may cost less than the qualifying trials; `least` is each point's work without repeats.

    Without what does in no respect more than a trial that found too little: but for repeated searches, more lists or candidates
    never find less.
    """
    enough = min((t.work_us for t in trials if not _refusal(t, target, p99_ms)), default=-math.inf)
    tried = [t.params for t in trials]
    poor = [t.params for t in trials if t.recall_at_10 < target]

    def hopeless(params: dict[str, Scalar]) -> bool:
        return any(all(float(params[n] or 0) <= float(v or 0) for n, v in p.items()) for p in poor)

    return [p for p in finer if least[str(p)] < enough and p not in tried and not hopeless(p)]


def _ordered(
    family: Family, rows: int, nlist: int, candidates: int, points: Iterable[dict[str, Scalar]]
) -> list[dict[str, Scalar]]:
    """Grid points, cheapest first; values above the number of lists are merged into one trial."""
    grid: dict[str, dict[str, Scalar]] = {}
    for params in points:
        kept = dict(params)
        if "nprobe" in kept:
            kept["nprobe"] = min(int(kept["nprobe"] or 1), nlist)
        grid.setdefault(str(kept), kept)
    return sorted(grid.values(), key=lambda p: family.cost(p, candidates, rows / nlist))


def _measure(
    work: CostCounter, xq: np.ndarray, truth: GroundTruth, params: dict[str, Scalar], candidates: int, target: float, clients: int
) -> TuningTrial:
    searcher = work.searcher
    searcher.search(xq[:1], candidates, params=params)
    work.reset()

    def asked(q: np.ndarray) -> tuple[float, np.ndarray]:
        began = time.perf_counter()
        rows = searcher.search(q[None], candidates, params=params).rows
        return 1e3 * (time.perf_counter() - began), rows

    def all_of(part: np.ndarray) -> list[tuple[float, np.ndarray]]:
        if clients == 1:
            return [asked(q) for q in part]
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(asked, part))

    began = time.perf_counter()
    answers = all_of(xq[:FIRST_PART])
    if len(xq) > FIRST_PART:
        first = keys_of(searcher, np.concatenate([rows for _, rows in answers]))
        if recall_against(first[:, :K], _head(truth, len(first)), K) >= target - FAR_BELOW:
            answers += all_of(xq[FIRST_PART:])
    qps = len(answers) / (time.perf_counter() - began)
    keys, seen = keys_of(searcher, np.concatenate([rows for _, rows in answers])), _head(truth, len(answers))
    p50, p99 = np.percentile([ms for ms, _ in answers], [50, 99])
    return TuningTrial(
        params, recall_against(keys[:, :K], seen, K), recall_against(keys, seen, K), float(p50), float(p99), qps,
        work.us(params) / len(answers), work.repeats() / len(answers), len(answers),
    )  # fmt: skip


def _head(truth: GroundTruth, n: int) -> GroundTruth:
    return GroundTruth(truth.keys[:n], truth.similarity[:n])


def _refusal(trial: TuningTrial, target: float, p99_ms: float) -> str:
    if trial.recall_at_10 < target:
        return f"recall {trial.recall_at_10:.3f} is below {target:.3f}"
    if trial.p99_ms > p99_ms:
        return f"p99 {trial.p99_ms:.2f} ms is above {p99_ms:g} ms"
    return ""


def _verdict(number: int, chosen: int, reason: str, trials: list[TuningTrial]) -> str:
    if number == chosen:
        return "chosen: the least work that keeps to the budget"
    return reason or f"{trials[number].work_us / trials[chosen].work_us:.2f} times the work of the chosen point"


def _pareto(trial: TuningTrial, trials: list[TuningTrial], queries: int) -> bool:
    return trial.queries == queries and not any(
        o.queries == queries
        and o.recall_at_10 >= trial.recall_at_10
        and o.p50_ms <= trial.p50_ms
        and (o.recall_at_10 > trial.recall_at_10 + TIE or o.p50_ms < trial.p50_ms)
        for o in trials
    )
