"""The index families: one row each. A new one is a new row."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from serving.contract.manifest import Scalar
from tasks.errors import VitrineError

HNSW_LISTS = 8192
"""From this many lists on, the coarse search itself goes through a graph (a flat one costs 0.5 us per list at 512-d)."""
CODE_NS = {"fs": 11.0, "rabitqfs": 45.0, "pq": 45.0, "flat": 90.0}
"""Nanoseconds per vector probed, 512-d, one thread (docs/performance.md): what trials are ordered by, never what they are judged by."""
REFINE_US = {"sq8": 0.5, "fp16": 1.2}
"""Microseconds per candidate refined, 512-d."""


@dataclass(frozen=True)
class Family:
    """How to make an index with FAISS and what may be tuned.

    `factory(d, nlist)` gives the factory string and `grid` the search parameters to try; `bytes_per_vector(d)` is its memory;
    `cost(params, candidates, rows_per_list)` orders the trials, in microseconds a query. `per_list` is the training vectors
    wanted per inverted list (0: no lists); `exact` says that its similarities are those of the stored vectors.
    """

    name: str
    factory: Callable[[int, int], str]
    grid: tuple[dict[str, Scalar], ...]
    bytes_per_vector: Callable[[int], float]
    cost: Callable[[dict[str, Scalar], int, float], float]
    per_list: int = 0
    trained: bool = True
    exact: bool = True
    sequential: bool = False
    """Whether vectors must be added on one thread for the same input to give the same bytes (graphs)."""


def lists_for(rows: int) -> int:
    """Inverted lists for this many rows: the power of two nearest 4 * sqrt(rows) (FAISS wiki, "Guidelines to choose an index")."""
    return 1 << max(4, round(math.log2(4 * max(rows, 1) ** 0.5)))


def code_count(d: int, share: int) -> int:
    """Sub-quantisers for dimension d: the largest divisor of d that is at most d / share."""
    return max(m for m in range(1, max(d // share, 1) + 1) if d % m == 0)


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
    return 6.0 * max(float(params["ef"] or 0), candidates)


WIDE = (4, 8, 16, 32, 64, 128, 256)
REFINED = tuple(p for kf in (1, 2, 4, 8) for p in _probes(*WIDE, k_factor=kf))
EFS: tuple[dict[str, Scalar], ...] = tuple({"ef": v} for v in (32, 64, 128, 256, 512, 1024))

FAMILIES = {
    f.name: f
    for f in (
        Family("flat", lambda d, n: "Flat", ({},), lambda d: 4 * d, lambda p, c, r: 0.0, trained=False),
        Family("ivf_flat", lambda d, n: f"{_ivf(n)},Flat", _probes(*WIDE), lambda d: 4 * d + 16, _scan("flat"), 39),
        Family(
            "ivf_pq",
            lambda d, n: f"OPQ{code_count(d, 8)}_{d},{_ivf(n)},PQ{code_count(d, 8)}",
            _probes(*WIDE),
            lambda d: code_count(d, 8) + 16,
            _scan("pq"),
            39,
            exact=False,
        ),
        Family(
            "ivf_fs_sq8",
            lambda d, n: f"{_ivf(n)},PQ{code_count(d, 8)}x4fs,Refine(SQ8)",
            REFINED,
            lambda d: d + code_count(d, 8) / 2 + 16,
            _scan("fs", "sq8"),
            39,
        ),
        Family(
            "ivf_fs_fp16",
            lambda d, n: f"{_ivf(n)},PQ{code_count(d, 8)}x4fs,Refine(SQfp16)",
            REFINED,
            lambda d: 2 * d + code_count(d, 8) / 2 + 16,
            _scan("fs", "fp16"),
            39,
        ),
        Family(
            "ivf_rabitq", lambda d, n: f"{_ivf(n)},RaBitQ", _probes(*WIDE), lambda d: d / 8 + 24, _scan("pq"), 39, exact=False
        ),
        Family(
            "ivf_rabitq_sq8",
            lambda d, n: f"{_ivf(n)},RaBitQfs,Refine(SQ8)",
            REFINED,
            lambda d: d + d / 8 + 32,
            _scan("rabitqfs", "sq8"),
            39,
        ),
        Family(
            "ivf_rabitq_fp16",
            lambda d, n: f"{_ivf(n)},RaBitQfs,Refine(SQfp16)",
            REFINED,
            lambda d: 2 * d + d / 8 + 32,
            _scan("rabitqfs", "fp16"),
            39,
        ),
        Family("hnsw_flat", lambda d, n: "HNSW32,Flat", EFS, lambda d: 4 * d + 276, _graph, trained=False, sequential=True),
        Family("hnsw_sq8", lambda d, n: "HNSW32,SQ8", EFS, lambda d: d + 276, _graph, sequential=True),
    )
}
FLAT_MAX_ROWS = 50_000
"""Up to here an exact scan costs less than 5 ms a query on one core (93 ms per million 512-d vectors, docs/performance.md)."""


def choose_family(rows: int, name: str = "", d: int = 0, ram_bytes: float = math.inf) -> Family:
    """The family asked for by name, or the one that fits this many rows a shard.

    With a memory budget for these rows (`d` given), the finest refined family that fits it. Raises VitrineError for an unknown
    name, and when not even the smallest family fits, saying what it would need.
    """
    if name:
        if name not in FAMILIES:
            raise VitrineError(f"index family {name!r} is not known; choose one of {', '.join(FAMILIES)}")
        return FAMILIES[name]
    order = ["flat"] if rows <= FLAT_MAX_ROWS else []
    order += ["ivf_fs_sq8", "ivf_pq"]
    if ram_bytes == math.inf or not d:
        return FAMILIES[order[0]]
    for family in (FAMILIES[n] for n in order):
        if family.bytes_per_vector(d) * rows <= ram_bytes:
            return family
    least = FAMILIES[order[-1]].bytes_per_vector(d) * rows
    raise VitrineError(
        f"no index family holds {rows} vectors of dimension {d} in {ram_bytes / 2**20:.0f} MiB; the smallest, {order[-1]}, "
        f"needs {least / 2**20:.0f} MiB: allow more memory or use more shards"
    )
