"""The table of index families. A new family is a new row; a retired one is a row of RETIRED."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

from serving.contract.manifest import Scalar

FAISS = "faiss"
SCALAR_LEAST = 256
"""Training vectors for the range of each number of a scalar quantiser, at least."""
HNSW_LISTS = 8192
"""From this many lists on, the coarse search itself goes through a graph (a flat one costs 0.5 us per list at 512-d)."""
FAST_CODES = 64
"""Sub-quantisers that a fast scan has at least, where its vectors are long enough: as many as at 512-d."""
CODE_NS = {"fs": 11.0, "pq": 45.0, "flat": 90.0}
"""Nanoseconds per vector probed, 512-d, one thread (docs/benchmarks.md): what trials are ordered by, never what they are judged by."""
REFINE_US = {"sq8": 0.5, "fp16": 1.2}
"""Microseconds per candidate refined, 512-d."""
FOLLOWED_US, KEPT_US = 4.0, 0.5
"""Microseconds per neighbour followed in a graph over SQ8 codes, 512-d, and per candidate kept (docs/benchmarks.md, "Every family
at a million")."""
EIGHT_BITS, BF16, FINE = 0.97, 0.98, 0.995
"""What eight bits a number, bf16 and finer stores reach: near vectors are not told apart by eight bits (docs/benchmarks.md, "The index
on vectors of real photos"), nor all of them by bf16 (docs/decisions/0073)."""


@dataclass(frozen=True)
class Family:
    """A FAISS factory, its tunable parameters, and its cost model.

    `factory(d, nlist)` gives the factory string and `grid` the search parameters to try; `bytes_per_vector(d)` is its memory;
    `cost(params, candidates, rows_per_list)` is the work of a search that finds enough at once, in microseconds a query.
    `per_list` is the training vectors wanted per inverted list (0: no lists); `exact` says that its similarities are those of the
    stored vectors. What it is expected to give and cost before it is built: `reach`, recall@10 that was reached on all kinds of
    vectors that were measured, ascending, each with parameters that did, and `build_s`, the seconds to train and add a million
    vectors of dimension 512 on two cores.
    """

    name: str
    factory: Callable[[int, int], str]
    grid: tuple[dict[str, Scalar], ...]
    bytes_per_vector: Callable[[int], float]
    cost: Callable[[dict[str, Scalar], int, float], float]
    per_list: int = 0
    trained: bool = True
    exact: bool = True
    reach: tuple[tuple[float, dict[str, Scalar]], ...] = ((1.0, {}),)
    build_s: float = 105.0
    engine: str = FAISS
    sequential: bool = False
    """Whether vectors must be added on one thread for the same input to give the same bytes (graphs)."""


def list_count(rows: int) -> int:
    """Number of inverted lists for the rows of all shards: the largest power of two up to 2.5 * sqrt(rows).

    Fewer than the 4 to 16 * sqrt(rows) of FAISS's wiki ("Guidelines to choose an index"): fast scans make long lists cheap, and
    training and adding take two thirds of the time (docs/benchmarks.md, "How many lists").
    """
    return 1 << max(4, math.floor(math.log2(2.5 * max(rows, 1) ** 0.5)))


def least_training(family: Family, rows: int) -> int:
    """Minimum number of training vectors of a family for the rows of all shards; 0 without training."""
    return max(family.per_list * list_count(rows), SCALAR_LEAST) if family.trained else 0


def code_count(d: int, share: int) -> int:
    """Number of sub-quantisers for dimension d: the largest divisor of d up to d / share."""
    return _largest_divisor(d, d // share)


def fast_code_count(d: int) -> int:
    """Number of 4-bit sub-quantisers: one per eight dimensions, up to 64 for short vectors, at least two dimensions each.

    Few codes cannot tell near vectors apart: at 128-d, 64 reach recall@10 of 0.95 in 0.4 times the time of 16 (docs/benchmarks.md).
    """
    return _largest_divisor(d, max(d // 8, min(FAST_CODES, d // 2)))


def _largest_divisor(d: int, most: int) -> int:
    return max(m for m in range(1, max(most, 1) + 1) if d % m == 0)


def refine_grid(grid: tuple[dict[str, Scalar], ...]) -> tuple[dict[str, Scalar], ...]:
    """A grid with the midpoints between neighbouring values of each parameter added, in every combination."""
    values = {name: sorted({float(p[name] or 0) for p in grid}) for name in grid[0]}
    finer = {name: sorted({*seen, *((a + b) / 2 for a, b in pairwise(seen))}) for name, seen in values.items()}
    points = product(*([int(v) if v == int(v) else v for v in seen] for seen in finer.values()))
    return tuple(dict(zip(finer, point, strict=True)) for point in points)


def _ivf(nlist: int) -> str:
    return f"IVF{nlist}_HNSW32" if nlist >= HNSW_LISTS else f"IVF{nlist}"


def probe_grid(*values: int, **fixed: Scalar) -> tuple[dict[str, Scalar], ...]:
    return tuple({"nprobe": v, **fixed} for v in values)


def scan_cost(code: str, refine: str = "") -> Callable[[dict[str, Scalar], int, float], float]:
    def cost(params: dict[str, Scalar], candidates: int, rows_per_list: float) -> float:
        scanned = float(params["nprobe"] or 0) * rows_per_list
        refined = float(params.get("k_factor") or 0) * candidates
        return scanned * CODE_NS[code] / 1e3 + refined * REFINE_US.get(refine, 0.0)

    return cost


def graph_cost(params: dict[str, Scalar], candidates: int, rows_per_list: float) -> float:
    return FOLLOWED_US * float(params["ef"] or 0) + KEPT_US * candidates


def _hnsw(
    name: str,
    links: int,
    store: str,
    width: int,
    reach: tuple[tuple[float, dict[str, Scalar]], ...],
    build_s: float,
    trained: bool = True,
) -> Family:
    """HNSW over `store` with `width` bytes per dimension: 2 * `links` neighbours of 4 bytes per node, and 20 bytes."""
    return Family(
        name,
        lambda d, n: f"HNSW{links},{store}",
        EFS,
        lambda d: width * d + 8 * links + 20,
        graph_cost,
        trained=trained,
        sequential=True,
        reach=reach,
        build_s=build_s,
    )


WIDE = (4, 8, 16, 32, 64, 128, 256, 512)
REFINED = tuple(p for kf in (1, 2, 4, 8) for p in probe_grid(*WIDE, k_factor=kf))
USUAL: dict[str, Scalar] = {"nprobe": 128, "k_factor": 1}
EFS: tuple[dict[str, Scalar], ...] = tuple({"ef": v} for v in (16, 32, 64, 128, 256, 512, 1024))

FAMILIES = {
    f.name: f
    for f in (
        Family("flat", lambda d, n: "Flat", ({},), lambda d: 4 * d, lambda p, c, r: 0.0, trained=False, build_s=2.0),
        Family(
            "ivf_flat",
            lambda d, n: f"{_ivf(n)},Flat",
            probe_grid(*WIDE),
            lambda d: 4 * d + 16,
            scan_cost("flat"),
            39,
            reach=((EIGHT_BITS, {"nprobe": 128}), (FINE, {"nprobe": 256})),
        ),
        Family(
            "ivf_pq",
            lambda d, n: f"OPQ{code_count(d, 8)}_{d},{_ivf(n)},PQ{code_count(d, 8)}",
            probe_grid(*WIDE),
            lambda d: code_count(d, 8) + 16,
            scan_cost("pq"),
            39,
            exact=False,
            reach=((0.77, {"nprobe": 512}),),
            build_s=376.0,
        ),
        Family(
            "ivf_fs_sq8",
            lambda d, n: f"{_ivf(n)},PQ{fast_code_count(d)}x4fs,Refine(SQ8)",
            REFINED,
            lambda d: d + fast_code_count(d) / 2 + 16,
            scan_cost("fs", "sq8"),
            39,
            reach=((EIGHT_BITS, USUAL),),
        ),
        Family(
            "ivf_fs_fp16",
            lambda d, n: f"{_ivf(n)},PQ{fast_code_count(d)}x4fs,Refine(SQfp16)",
            REFINED,
            lambda d: 2 * d + fast_code_count(d) / 2 + 16,
            scan_cost("fs", "fp16"),
            39,
            reach=((EIGHT_BITS, USUAL), (FINE, {"nprobe": 256, "k_factor": 2})),
        ),
        _hnsw("hnsw_flat", 32, "Flat", 4, ((EIGHT_BITS, {"ef": 64}), (FINE, {"ef": 128})), 790.0, trained=False),
        _hnsw("hnsw_sq8", 32, "SQ8", 1, ((EIGHT_BITS, {"ef": 64}),), 680.0),
        _hnsw("hnsw_bf16", 32, "SQbf16", 2, ((EIGHT_BITS, {"ef": 64}), (BF16, {"ef": 128})), 650.0),
        _hnsw("hnsw_fp16", 32, "SQfp16", 2, ((EIGHT_BITS, {"ef": 64}), (FINE, {"ef": 128})), 650.0),
        _hnsw("hnsw16_fp16", 16, "SQfp16", 2, ((EIGHT_BITS, {"ef": 64}), (FINE, {"ef": 256})), 590.0),
    )
}
"""What can be built: flat, IVF-Flat, IVF-PQ and HNSW over flat vectors, and what a budget chooses (docs/decisions/0033)."""


@dataclass(frozen=True)
class RetiredFamily:
    """A family no longer built, kept so that its versions can be served, checked, refreshed and rolled back to."""

    factory: Callable[[int, int], str]
    exact: bool = True


RETIRED = {
    "ivf_rabitq": RetiredFamily(lambda d, n: f"{_ivf(n)},RaBitQ", exact=False),
    "ivf_rabitq_sq8": RetiredFamily(lambda d, n: f"{_ivf(n)},RaBitQfs,Refine(SQ8)"),
    "ivf_rabitq_fp16": RetiredFamily(lambda d, n: f"{_ivf(n)},RaBitQfs,Refine(SQfp16)"),
}
ALL_FAMILIES: dict[str, Family | RetiredFamily] = {**FAMILIES, **RETIRED}
"""What a version may be of."""
