"""The index families: one row each. A new one is a new row."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise, product

from serving.contract.manifest import CANDIDATES, Scalar
from tasks.errors import VitrineError

SCALAR_LEAST = 256
"""Training vectors for the range of each number of a scalar quantiser, at least."""
HNSW_LISTS = 8192
"""From this many lists on, the coarse search itself goes through a graph (a flat one costs 0.5 us per list at 512-d)."""
FAST_CODES = 64
"""Sub-quantisers that a fast scan has at least, where its vectors are long enough: as many as at 512-d."""
CODE_NS = {"fs": 11.0, "rabitqfs": 45.0, "pq": 45.0, "flat": 90.0}
"""Nanoseconds per vector probed, 512-d, one thread (docs/performance.md): what trials are ordered by, never what they are judged by."""
REFINE_US = {"sq8": 0.5, "fp16": 1.2}
"""Microseconds per candidate refined, 512-d."""
FOLLOWED_US, KEPT_US = 4.0, 0.5
"""Microseconds per neighbour followed in a graph over SQ8 codes, 512-d, and per candidate kept (docs/performance.md, "Every family
at a million")."""
SCAN_BYTES_PER_MS = 22e6
"""An exact scan streams 22 GB/s."""


@dataclass(frozen=True)
class Family:
    """How to make an index with FAISS and what may be tuned.

    `factory(d, nlist)` gives the factory string and `grid` the search parameters to try; `bytes_per_vector(d)` is its memory;
    `cost(params, candidates, rows_per_list)` is the work of a search that finds enough at once, in microseconds a query.
    `per_list` is the training vectors wanted per inverted list (0: no lists); `exact` says that its similarities are those of the
    stored vectors. `usual` are parameters that reach recall@10 0.95 on hard data and `build_s` the seconds to train and add a
    million vectors of dimension 512 on two cores: what it is expected to cost before it is built.
    """

    name: str
    factory: Callable[[int, int], str]
    grid: tuple[dict[str, Scalar], ...]
    bytes_per_vector: Callable[[int], float]
    cost: Callable[[dict[str, Scalar], int, float], float]
    per_list: int = 0
    trained: bool = True
    exact: bool = True
    usual: dict[str, Scalar] = field(default_factory=dict)
    build_s: float = 105.0
    sequential: bool = False
    """Whether vectors must be added on one thread for the same input to give the same bytes (graphs)."""


def lists_for(rows: int) -> int:
    """Inverted lists for the rows of all shards: the largest power of two up to 2.5 * sqrt(rows).

    Fewer than the 4 to 16 * sqrt(rows) of FAISS's wiki ("Guidelines to choose an index"): fast scans make long lists cheap, and
    training and adding take two thirds of the time (docs/performance.md, "How many lists").
    """
    return 1 << max(4, math.floor(math.log2(2.5 * max(rows, 1) ** 0.5)))


def least_training(family: Family, rows: int) -> int:
    """Training vectors without which a family cannot be trained for the rows of all shards; 0 where it is not trained."""
    return max(family.per_list * lists_for(rows), SCALAR_LEAST) if family.trained else 0


def code_count(d: int, share: int) -> int:
    """Sub-quantisers for dimension d: the largest divisor of d that is at most d / share."""
    return _largest_divisor(d, d // share)


def fast_code_count(d: int) -> int:
    """Sub-quantisers of four bits: one for every eight numbers, and for short vectors up to 64, each of at least two numbers.

    Few codes cannot tell near vectors apart: at 128-d, 64 reach recall@10 of 0.95 in 0.4 times the time of 16 (docs/performance.md).
    """
    return _largest_divisor(d, max(d // 8, min(FAST_CODES, d // 2)))


def _largest_divisor(d: int, most: int) -> int:
    return max(m for m in range(1, max(most, 1) + 1) if d % m == 0)


def half_steps(grid: tuple[dict[str, Scalar], ...]) -> tuple[dict[str, Scalar], ...]:
    """A grid and what lies half way between the neighbouring values of each of its parameters, in every combination."""
    values = {name: sorted({float(p[name] or 0) for p in grid}) for name in grid[0]}
    finer = {name: sorted({*seen, *((a + b) / 2 for a, b in pairwise(seen))}) for name, seen in values.items()}
    points = product(*([int(v) if v == int(v) else v for v in seen] for seen in finer.values()))
    return tuple(dict(zip(finer, point, strict=True)) for point in points)


def _ivf(nlist: int) -> str:
    return f"IVF{nlist}_HNSW32" if nlist >= HNSW_LISTS else f"IVF{nlist}"


def _probes(*values: int, **fixed: Scalar) -> tuple[dict[str, Scalar], ...]:
    return tuple({"nprobe": v, **fixed} for v in values)


def _scan(code: str, refine: str = "") -> Callable[[dict[str, Scalar], int, float], float]:
    def cost(params: dict[str, Scalar], candidates: int, rows_per_list: float) -> float:
        scanned = float(params["nprobe"] or 0) * rows_per_list
        refined = float(params.get("k_factor") or 0) * candidates
        return scanned * CODE_NS[code] / 1e3 + refined * REFINE_US.get(refine, 0.0)

    return cost


def _graph(params: dict[str, Scalar], candidates: int, rows_per_list: float) -> float:
    return FOLLOWED_US * float(params["ef"] or 0) + KEPT_US * candidates


WIDE = (4, 8, 16, 32, 64, 128, 256, 512)
REFINED = tuple(p for kf in (1, 2, 4, 8) for p in _probes(*WIDE, k_factor=kf))
REFINE_USUAL: dict[str, Scalar] = {"nprobe": 128, "k_factor": 4}
EFS: tuple[dict[str, Scalar], ...] = tuple({"ef": v} for v in (16, 32, 64, 128, 256, 512, 1024))

FAMILIES = {
    f.name: f
    for f in (
        Family("flat", lambda d, n: "Flat", ({},), lambda d: 4 * d, lambda p, c, r: 0.0, trained=False, build_s=2.0),
        Family(
            "ivf_flat",
            lambda d, n: f"{_ivf(n)},Flat",
            _probes(*WIDE),
            lambda d: 4 * d + 16,
            _scan("flat"),
            39,
            usual={"nprobe": 128},
        ),
        Family(
            "ivf_pq",
            lambda d, n: f"OPQ{code_count(d, 8)}_{d},{_ivf(n)},PQ{code_count(d, 8)}",
            _probes(*WIDE),
            lambda d: code_count(d, 8) + 16,
            _scan("pq"),
            39,
            exact=False,
            usual={"nprobe": 64},
        ),
        Family(
            "ivf_fs_sq8",
            lambda d, n: f"{_ivf(n)},PQ{fast_code_count(d)}x4fs,Refine(SQ8)",
            REFINED,
            lambda d: d + fast_code_count(d) / 2 + 16,
            _scan("fs", "sq8"),
            39,
            usual=REFINE_USUAL,
        ),
        Family(
            "ivf_fs_fp16",
            lambda d, n: f"{_ivf(n)},PQ{fast_code_count(d)}x4fs,Refine(SQfp16)",
            REFINED,
            lambda d: 2 * d + fast_code_count(d) / 2 + 16,
            _scan("fs", "fp16"),
            39,
            usual=REFINE_USUAL,
        ),
        Family(
            "ivf_rabitq",
            lambda d, n: f"{_ivf(n)},RaBitQ",
            _probes(*WIDE),
            lambda d: d / 8 + 24,
            _scan("pq"),
            39,
            exact=False,
            usual={"nprobe": 64},
        ),
        Family(
            "ivf_rabitq_sq8",
            lambda d, n: f"{_ivf(n)},RaBitQfs,Refine(SQ8)",
            REFINED,
            lambda d: d + d / 8 + 32,
            _scan("rabitqfs", "sq8"),
            39,
            usual=REFINE_USUAL,
        ),
        Family(
            "ivf_rabitq_fp16",
            lambda d, n: f"{_ivf(n)},RaBitQfs,Refine(SQfp16)",
            REFINED,
            lambda d: 2 * d + d / 8 + 32,
            _scan("rabitqfs", "fp16"),
            39,
            usual=REFINE_USUAL,
        ),
        Family(
            "hnsw_flat",
            lambda d, n: "HNSW32,Flat",
            EFS,
            lambda d: 4 * d + 276,
            _graph,
            trained=False,
            sequential=True,
            usual={"ef": 32},
            build_s=790.0,
        ),
        Family(
            "hnsw_sq8",
            lambda d, n: "HNSW32,SQ8",
            EFS,
            lambda d: d + 276,
            _graph,
            sequential=True,
            usual={"ef": 32},
            build_s=680.0,
        ),
        Family(
            "hnsw_fp16",
            lambda d, n: "HNSW32,SQfp16",
            EFS,
            lambda d: 2 * d + 276,
            _graph,
            sequential=True,
            usual={"ef": 32},
            build_s=650.0,
        ),
    )
}
FLAT_MAX_ROWS = 50_000
"""Up to here an exact scan costs less than 5 ms a query on one core (93 ms per million 512-d vectors, docs/performance.md)."""
P99_OF_COST = 3.0
"""The p99 expected of a query, over the work it does."""


@dataclass(frozen=True)
class Budget:
    """What an index may cost: memory of all shards, p99 of the first phase, seconds to build a shard. Infinite: any."""

    ram_bytes: float = math.inf
    p99_ms: float = math.inf
    build_s: float = math.inf


@dataclass(frozen=True)
class Choice:
    """The family that was chosen, and for every family that was considered why it was or was not."""

    family: Family
    reasons: dict[str, str]


def choose_family(rows: int, name: str = "", d: int = 0, budget: Budget | None = None, shards: int = 1) -> Choice:
    """The family asked for by name, or the one that fits `rows` vectors of dimension d in each of `shards` shards.

    Without a budget: flat for few rows, else fast scan with a refine stage. With one, of the families that are expected to keep
    to it the one that takes the least memory; those that answer by estimates alone only when no other fits the memory. Raises
    VitrineError for an unknown name, and when nothing fits, saying what each would need.
    """
    if name:
        if name not in FAMILIES:
            raise VitrineError(f"index family {name!r} is not known; choose one of {', '.join(FAMILIES)}")
        return Choice(FAMILIES[name], {name: "asked for by name"})
    if rows <= FLAT_MAX_ROWS:
        return Choice(FAMILIES["flat"], {"flat": f"{rows} rows a shard are compared exactly in under 5 ms"})
    if budget is None or not d or math.inf == budget.ram_bytes == budget.p99_ms == budget.build_s:
        return Choice(FAMILIES["ivf_fs_sq8"], {"ivf_fs_sq8": "no budget is set: the refined family of least memory"})
    refused = {n: _refusal(f, rows, d, budget, shards) for n, f in FAMILIES.items()}
    fitting = [f for f in FAMILIES.values() if not refused[f.name]]
    if not fitting:
        shown = "; ".join(f"{n}: {why}" for n, why in refused.items())
        raise VitrineError(f"no index family holds {rows} vectors of dimension {d} a shard within the budget: {shown}")
    chosen = min(fitting, key=lambda f: (not f.exact, f.bytes_per_vector(d)))
    reasons = {f.name: f"fits, and takes {f.bytes_per_vector(d):.0f} bytes a vector" for f in fitting}
    reasons |= {f.name: "fits, but answers by estimates alone" for f in fitting if not f.exact and chosen.exact}
    reasons |= {n: why for n, why in refused.items() if why}
    kind = "least memory of those that fit" if chosen.exact else "nothing finer fits the memory"
    return Choice(chosen, reasons | {chosen.name: f"chosen: {kind} ({chosen.bytes_per_vector(d):.0f} bytes a vector)"})


def expected_ms(family: Family, rows: int, d: int, shards: int, candidates: int = CANDIDATES) -> float:
    """The work of one query over all shards, milliseconds on one core: graphs and exact scans are searched shard by shard."""
    if not family.usual:
        return rows * shards * d * 4 / SCAN_BYTES_PER_MS
    if family.sequential:
        return shards * family.cost(family.usual, -(-candidates // shards), 0.0) / 1e3
    per_list = rows * shards / lists_for(rows * shards)
    return family.cost(family.usual, candidates, per_list) / 1e3


def _refusal(family: Family, rows: int, d: int, budget: Budget, shards: int) -> str:
    """What a family is expected to overstep; "" when nothing."""
    whole = family.bytes_per_vector(d) * rows * shards
    if whole > budget.ram_bytes:
        return f"takes {whole / 2**20:.0f} MiB and {budget.ram_bytes / 2**20:.0f} are allowed"
    if (ms := P99_OF_COST * expected_ms(family, rows, d, shards)) > budget.p99_ms:
        return f"p99 would be about {ms:.1f} ms and {budget.p99_ms:g} are allowed"
    if (seconds := family.build_s * rows / 1e6 * d / 512) > budget.build_s:
        return f"a shard would take about {seconds:.0f} s to build and {budget.build_s:g} are allowed"
    return ""
