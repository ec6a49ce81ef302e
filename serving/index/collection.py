"""Collections of other engines: where one is reached, what its module offers, and opening the one that a manifest names."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np

from serving.circuit_breaker import Errors
from serving.contract.addresses import is_url, scheme, shown_setting, userinfo_encoded, without_secrets
from serving.contract.files import ContractError
from serving.contract.manifest import Scalar
from serving.index.engine import FilterTooSlow, Mask
from serving.index.merge import Neighbors, empty, merge

MODULES = {
    "pgvector": "serving.index.pgvector_engine",
    "milvus": "serving.index.milvus_engine",
    "qdrant": "serving.index.qdrant_engine",
    "weaviate": "serving.index.weaviate_engine",
    "pinecone": "serving.index.pinecone_engine",
}
"""Where each engine's `EngineModule` lies."""
SCHEMES = {"pgvector": ("postgresql", "postgres"), "milvus": ("http", "https", "tcp")}
LIKE = {"pgvector": "postgresql://user@host/database", "milvus": "http://host:19530"}
"""What addresses of these engines begin with and are like; those of others are http://host:port, or https://host."""
MEASURE_S = 600.0
"""Seconds for comparisons with a large part of a collection, which only measurements ask for."""
CALLS = 3
"""As many times the limit of an exact comparison may it take where it needs several calls, all of them together."""


@dataclass(frozen=True)
class Endpoint:
    """Where an engine is reached: its address, a token where it asks for one, and the seconds that one call may take.

    `exact_s`: the seconds that an exact comparison may take; 0: as long as a call.
    """

    address: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    timeout_s: float = 2.0
    exact_s: float = 0.0

    def __post_init__(self) -> None:
        """Strips both: the newline that ends a file of secrets is refused by clients in a sentence that shows the secret."""
        for name in ("address", "token"):
            object.__setattr__(self, name, getattr(self, name).strip())

    def patient(self, timeout_s: float = MEASURE_S) -> "Endpoint":
        """The same for calls that may take long."""
        return replace(self, timeout_s=timeout_s)


NOWHERE = Endpoint()

_measuring: ContextVar[bool] = ContextVar("measuring", default=False)


@contextmanager
def measuring() -> Iterator[None]:
    """Comparisons within are measurements, which no shopper waits for: they may take as long as they need."""
    token = _measuring.set(True)
    try:
        yield
    finally:
        _measuring.reset(token)


def exact_limit_s(endpoint: Endpoint, measured_s: float = MEASURE_S) -> float:
    """The seconds that an exact comparison may take now: `measured_s` for a measurement."""
    return measured_s if _measuring.get() else endpoint.exact_s or endpoint.timeout_s


def too_slow(engine: str, rows: int, limit_s: float) -> FilterTooSlow:
    """The error of a comparison that took too long."""
    return FilterTooSlow(f"{engine} did not compare the {rows} rows that a filter leaves within {limit_s:g} s")


def no_collection(engine: str, name: str) -> ContractError:
    """The error of a collection that is gone."""
    return ContractError(f"{engine} has no collection {name} (any more)")


def other_dimension(name: str, held: int | None, dim: int) -> ContractError:
    """The error of a collection that has the dimension `held`."""
    return ContractError(f"collection {name} has dimension {held}, where the encoder gives {dim}")


def ids_missing(name: str, rows: int) -> ContractError:
    """The error of a collection whose ids are not 0..rows-1."""
    return ContractError(f"the ids of the {rows} rows of collection {name} do not count up from 0: ids are missing")


class OwnsClient:
    """Has a `client` of its own, which is closed when nobody refers to this any more."""

    client: Any

    def __del__(self) -> None:
        if (client := getattr(self, "client", None)) is not None:  # None where connecting failed
            client.close()


class Collection(Protocol):
    """Vectors under the ids 0..rows-1 of one collection in an engine. Thread-safe; raises the engine's own errors.

    `most`: the greatest k of a search. `takes_masks`: a search returns no row that its mask excludes; else the mask is ignored
    and more is fetched (serving/index/remote_engine.py).
    """

    rows: int
    most: int
    takes_masks: bool

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int) -> Neighbors:
        """Approximate k nearest ids of xq (nq, d) by inner product, in any order."""
        ...

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        """Exact k nearest of xq (nq, d) among these ids (n,)."""
        ...

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """The vectors (n, d) float32 of these ids."""
        ...


class EngineModule(Protocol):
    """What the module of an engine offers. `TRANSIENT`: errors that another attempt may not meet."""

    TRANSIENT: Errors

    def open_collection(self, endpoint: Endpoint, name: str, dim: int) -> Collection: ...


def engine_module(engine: str) -> EngineModule:
    """The module of an engine. Raises ContractError for an unknown one, or one that is not installed."""
    if engine not in MODULES:
        raise ContractError(f"there is no engine {engine!r}; faiss, {', '.join(MODULES)} are known")
    try:
        return cast(EngineModule, import_module(MODULES[engine]))
    except ModuleNotFoundError as error:
        raise ContractError(f"{engine} needs the package {error.name}: install vitrine[{engine}]") from None


def address_fault(engine: str, address: str) -> str:
    """What is wrong with the address of an engine, as a sentence; "" where nothing is. Clients' own sentences may show passwords."""
    if engine not in MODULES:
        return ""
    like = f"{engine} is reached at {LIKE.get(engine, 'http://host:port, or https://host')}"
    if scheme(address) not in SCHEMES.get(engine, ("http", "https")):
        return f"VITRINE_ENGINE_ADDRESS={shown_setting(address)!r}: {like}"
    if not userinfo_encoded(address):
        return (
            f"VITRINE_ENGINE_ADDRESS={without_secrets(address)!r}: its user and password must be percent-encoded, as %40 for @, %2F for /, "
            "%25 for %"
        )
    if engine != "pgvector" and not is_url(address):
        return f"VITRINE_ENGINE_ADDRESS={without_secrets(address)!r}: {like}"
    return ""


def open_collection(engine: str, endpoint: Endpoint, name: str, dim: int) -> Collection:
    """Opens a collection of `engine`. Raises ContractError for an unknown engine, one that is not installed, or a missing or wrong
    address."""
    if not endpoint.address:
        raise ContractError(f"the vectors lie in {engine}, and no address of it is set (VITRINE_ENGINE_ADDRESS)")
    if fault := address_fault(engine, endpoint.address):
        raise ContractError(fault)
    return engine_module(engine).open_collection(endpoint, name, dim)


def compare_fetched(
    fetch: Callable[[np.ndarray], np.ndarray], xq: np.ndarray, positions: np.ndarray, k: int, block: int = 4096,
    limit_s: float = math.inf,
) -> Neighbors:  # fmt: skip
    """Exact k nearest of xq (nq, d) among these ids (n,), whose vectors `fetch` gives; one block of them in memory at a time.

    Raises TimeoutError where that takes more than `limit_s`.
    """
    return compare_blocks(by_vectors(xq, fetch), len(xq), positions, k, block, limit_s)


def compare_blocks(
    compare: Callable[[np.ndarray], Neighbors], queries: int, positions: np.ndarray, k: int, block: int = 4096,
    limit_s: float = math.inf,
) -> Neighbors:  # fmt: skip
    """Exact k nearest among these ids (n,), block by block; `compare` gives those of each query among the ids of a block.

    Raises TimeoutError where that takes more than `limit_s`.
    """
    found, until = empty(queries, k), time.monotonic() + limit_s
    for start in range(0, len(positions), block):
        if time.monotonic() > until:
            raise TimeoutError(f"{start} of {len(positions)} rows were compared in {limit_s:g} s")
        found = merge([found, compare(positions[start : start + block])], k)
    return found


def compare_in_calls(
    engine: str, endpoint: Endpoint, compare: Callable[[np.ndarray], Neighbors], queries: int, positions: np.ndarray, k: int,
    block: int,
) -> Neighbors:  # fmt: skip
    """As `compare_blocks`, of an engine that is asked once a block. Raises FilterTooSlow where all calls take too long."""
    limit_s = CALLS * exact_limit_s(endpoint, math.inf)
    try:
        return compare_blocks(compare, queries, positions, k, block, limit_s)
    except TimeoutError as error:
        raise too_slow(engine, len(positions), limit_s) from error


def by_vectors(xq: np.ndarray, fetch: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], Neighbors]:
    """A function that compares xq (nq, d) with all of these ids (n,), whose vectors (n, d) `fetch` gives."""
    return lambda ids: Neighbors(xq @ fetch(ids).T, np.broadcast_to(ids, (len(xq), len(ids))))


def fetch_vectors(
    fetch: Callable[[list[int]], Mapping[int, Sequence[float]]], positions: np.ndarray, dim: int, block: int
) -> np.ndarray:
    """Vectors (n, dim) float32 of these ids (n,), in their order; `fetch` gives those of a block, in any order.

    Raises LookupError for an id that is not there.
    """
    parts = [np.zeros((0, dim), np.float32)]
    for start in range(0, len(positions), block):
        ids = positions[start : start + block].tolist()
        by_id = fetch(ids)
        if absent := [n for n in ids if n not in by_id]:
            raise LookupError(f"it holds no vector under id {absent[0]}")
        parts.append(np.array([by_id[n] for n in ids], np.float32).reshape(len(ids), dim))
    return np.concatenate(parts)
