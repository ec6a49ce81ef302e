"""The index families: one row each. A new one is a new row."""

from collections.abc import Callable
from dataclasses import dataclass

from serving.contract.manifest import Scalar
from tasks.errors import VitrineError


@dataclass(frozen=True)
class Family:
    """How to make an index with FAISS and what may be tuned.

    `factory(d, nlist)` gives the factory string; `grid` the search parameters to try, cheapest first;
    `bytes_per_vector(d)` its memory; `per_list` is the training vectors wanted per inverted list (0: no lists).
    """

    name: str
    factory: Callable[[int, int], str]
    grid: tuple[dict[str, Scalar], ...]
    bytes_per_vector: Callable[[int], float]
    per_list: int = 0
    trained: bool = True


def _probes(*values: int, **fixed: Scalar) -> tuple[dict[str, Scalar], ...]:
    return tuple({"nprobe": v, **fixed} for v in values)


FAMILIES = {
    f.name: f
    for f in (
        Family("flat", lambda d, nlist: "Flat", ({},), lambda d: 4 * d, trained=False),
        Family("ivf_flat", lambda d, nlist: f"IVF{nlist},Flat", _probes(4, 8, 16, 32, 64, 128, 256), lambda d: 4 * d + 8, 39),
        Family(
            "ivf_fs_sq8",
            lambda d, nlist: f"IVF{nlist},PQ{d // 8}x4fs,Refine(SQ8)",
            tuple(p for kf in (2, 4, 8) for p in _probes(8, 16, 32, 64, 128, 256, k_factor=kf)),
            lambda d: d + d / 16 + 16,
            39,
        ),
        Family("hnsw_sq8", lambda d, nlist: "HNSW32,SQ8", tuple({"ef": v} for v in (32, 64, 128, 256, 512)), lambda d: d + 280),
    )
}
FLAT_MAX_ROWS = 50_000
"""Up to here an exact scan costs less than 5 ms a query on one core (93 ms per million 512-d vectors, docs/performance.md)."""


def choose_family(rows: int, name: str = "") -> Family:
    """The family asked for by name, or the one that fits this many rows a shard. Raises VitrineError for an unknown name."""
    if name:
        if name not in FAMILIES:
            raise VitrineError(f"index family {name!r} is not known; choose one of {', '.join(FAMILIES)}")
        return FAMILIES[name]
    return FAMILIES["flat" if rows <= FLAT_MAX_ROWS else "ivf_fs_sq8"]


def lists_for(rows: int) -> int:
    """Inverted lists for this many rows: a power of two near 4 * sqrt(rows) (FAISS wiki, "Guidelines to choose an index")."""
    return 1 << max(4, round(4 * rows**0.5).bit_length() - 1)
