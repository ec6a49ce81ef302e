"""Chooses the index family by measured costs, before anything is built."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from serving.contract.manifest import CANDIDATES
from tasks.errors import VitrineError
from tasks.index.engine_families import engine_family
from tasks.index.families import FAISS, FAMILIES, RETIRED, Family, least_training, list_count

FLAT_MAX_ROWS = 50_000
"""Up to so many rows in all an exact scan takes less than 5 ms a query on one core (93 ms per million 512-d vectors,
docs/benchmarks.md)."""
SCAN_BYTES_PER_MS = 22e6
"""An exact scan streams 22 GB/s."""
P99_OF_COST = 3.0
"""The p99 expected of a query, over the work it does."""


@dataclass(frozen=True)
class Budget:
    """Resource limits: memory of all shards, p99 of the first phase with `clients` concurrent clients, seconds per shard build.

    Infinite: any.
    """

    ram_bytes: float = math.inf
    p99_ms: float = math.inf
    build_s: float = math.inf
    clients: int = 1


@dataclass(frozen=True)
class IndexConfig:
    """What determines an index's content besides its input data."""

    shards: int = 2
    family: str = ""
    """A name of tasks.index.families, or "" to choose by size, recall and budget."""
    sample: int = 200_000
    """Training vectors, taken evenly from all shards; more where the lists of many rows need more (`training_vectors`)."""
    seed: int = 7
    recall_target: float = 0.95
    budget: Budget = field(default_factory=Budget)
    """What decides the family where none is named."""
    engine: str = FAISS
    """What holds the base vectors; of another engine the first of its families, or the one named."""

    def identity(self) -> dict[str, Any]:
        """What a version's content key says of it; the engine only where it is another one than ever."""
        return {name: value for name, value in asdict(self).items() if name != "engine" or value != FAISS}


@dataclass(frozen=True)
class Requirements:
    """Requirements of an index: `rows` vectors of dimension d in `shards` shards, recall@10 of `target`, a budget.

    `cores`: how many searches run side by side, where more clients ask at once.
    """

    rows: int
    d: int
    shards: int = 1
    target: float = 0.95
    budget: Budget = field(default_factory=Budget)
    cores: int = 1


@dataclass(frozen=True)
class Choice:
    """The chosen family, and for each family the reason and its expected memory."""

    family: Family
    reasons: dict[str, str]


def choose_family(need: Requirements, name: str = "", engine: str = FAISS) -> Choice:
    """The family of this name, or the best-ranked one expected to reach the recall within the budget.

    Raises VitrineError for a name that is unknown or built no more, and when nothing fits, saying what each would need. Of another
    `engine`: its family of this name, or its first.
    """
    if engine != FAISS:
        family = engine_family(engine, name)
        return Choice(family, {family.name: f"chosen: VITRINE_ENGINE={engine}; {_memory(family, need)}"})
    if name and name not in FAMILIES:
        why = "is built no more, though its versions are served and refreshed" if name in RETIRED else "is not known"
        raise VitrineError(f"index family {name!r} {why}; choose one of {', '.join(FAMILIES)}")
    refused = {n: why_not_eligible(f, need) for n, f in FAMILIES.items()}
    fitting = rank_families(need)
    if not name and not fitting:
        shown = "; ".join(f"{n}: {why}" for n, why in refused.items())
        raise VitrineError(
            f"no index family holds {need.rows} vectors of dimension {need.d} at recall@10 {need.target:g} within the "
            f"budget: {shown}"
        )
    chosen = FAMILIES[name] if name else fitting[0]
    reasons = {n: why or ("fits" if FAMILIES[n].exact else "fits, but answers by estimates alone") for n, why in refused.items()}
    why = "asked for by name" + (f", though it {refused[name]}" if refused[name] else "") if name else _why(chosen, need)
    reasons[chosen.name] = f"chosen: {why}"
    return Choice(chosen, {n: f"{why}; {_memory(FAMILIES[n], need)}" for n, why in reasons.items()})


def rank_families(need: Requirements) -> list[Family]:
    """Families expected to meet the requirements, best (least memory) first.

    An exact scan is first for few rows; for more it comes after whatever does less work. Estimates alone are last.
    """
    fitting = [f for f in FAMILIES.values() if not why_not_eligible(f, need)]
    few = need.rows <= FLAT_MAX_ROWS

    def rank(family: Family) -> tuple[int, float]:
        order = 3 if not family.exact else 1 if family.trained or family.sequential else 0 if few else 2
        return order, family.bytes_per_vector(need.d)

    return sorted(fitting, key=rank)


def next_family(family: Family, need: Requirements, missed: Literal["recall", "p99", "memory"]) -> str:
    """The family to set after a built one missed recall, p99 or memory: the best-ranked one that improves it; "" for none."""
    measures: dict[str, Callable[[Family], float]] = {
        "recall": lambda f: -f.reach[-1][0],
        "p99": lambda f: expected_ms(f, need),
        "memory": lambda f: f.bytes_per_vector(need.d),
    }
    measure = measures[missed]
    return next((f.name for f in rank_families(need) if measure(f) < measure(family)), "")


def expected_ms(family: Family, need: Requirements) -> float:
    """Expected work of one query over all shards, milliseconds on one core; graphs and flat scans pay per shard."""
    params = next((params for recall, params in family.reach if recall >= need.target), family.reach[-1][1])
    if not params:
        return need.rows * need.d * 4 / SCAN_BYTES_PER_MS
    if family.sequential:
        return need.shards * family.cost(params, -(-CANDIDATES // need.shards), 0.0) / 1e3
    return family.cost(params, CANDIDATES, need.rows / list_count(need.rows)) / 1e3


def why_not_eligible(family: Family, need: Requirements) -> str:
    """The requirement that a family is expected to miss; "" for none."""
    budget, most = need.budget, family.reach[-1][0]
    if need.target > most:
        return f"reaches recall@10 {most:g} on every kind of vectors measured and {need.target:g} is required"
    if (least := least_training(family, need.rows)) > need.rows:
        return f"needs {least} training vectors and there are {need.rows}"
    if (whole := _bytes(family, need)) > budget.ram_bytes:
        return f"takes {whole / 2**20:.0f} MiB and {budget.ram_bytes / 2**20:.0f} are allowed"
    waiting = max(1.0, budget.clients / need.cores)
    if (ms := P99_OF_COST * waiting * expected_ms(family, need)) > budget.p99_ms:
        at_once = f" with {budget.clients} clients" if budget.clients > 1 else ""
        return f"would have a p99 of about {ms:.1f} ms{at_once} and {budget.p99_ms:g} are allowed"
    if (seconds := family.build_s * need.rows / need.shards / 1e6 * need.d / 512) > budget.build_s:
        return f"would take about {seconds:.0f} s to build a shard and {budget.build_s:g} are allowed"
    return ""


def _why(chosen: Family, need: Requirements) -> str:
    if not chosen.exact:
        return "nothing finer fits"
    if chosen.trained or chosen.sequential:
        return "least memory of those that fit"
    if need.rows <= FLAT_MAX_ROWS:
        return f"{need.rows} vectors are compared exactly in about {expected_ms(chosen, need):.1f} ms"
    return "nothing that does less work fits"


def _bytes(family: Family, need: Requirements) -> float:
    return family.bytes_per_vector(need.d) * need.rows


def _memory(family: Family, need: Requirements) -> str:
    return f"{family.bytes_per_vector(need.d):.0f} bytes a vector, {_bytes(family, need) / 2**20:.0f} MiB"
