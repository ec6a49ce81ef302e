"""Over-fetching and comparisons, without an engine; whole engines: tests/engines."""

import re

import numpy as np
import pytest

from serving.circuit_breaker import FAILURES, CircuitBreaker
from serving.contract.files import ContractError
from serving.index.collection import (
    Endpoint,
    address_fault,
    compare_fetched,
    exact_limit_s,
    fetch_vectors,
    measuring,
    open_collection,
    too_slow,
)
from serving.index.engine import EngineUnavailable, FilterTooSlow, Mask
from serving.index.merge import Neighbors
from serving.index.remote_engine import RemoteEngine
from serving.index.unmasked import over_fetch


class Ranked:
    """A collection whose rows are ranked by their position, that takes no masks and counts what is fetched."""

    rows, most, takes_masks = 1000, 400, False

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict, effort: int) -> Neighbors:
        self.fetched.append(k)
        rows = np.tile(np.arange(k), (len(xq), 1))
        return Neighbors((1 - rows / 1000).astype(np.float32), rows)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        rows = np.tile(positions[:k], (len(xq), 1))
        return Neighbors((1 - rows / 1000).astype(np.float32), rows)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        return np.zeros((len(positions), 2), np.float32)


def made_up() -> CircuitBreaker:
    return CircuitBreaker("made up", EngineUnavailable, (ConnectionError,), (ContractError, FilterTooSlow))


def test_enough_is_fetched_for_k_allowed_rows_and_never_more_than_all_excluded_ones() -> None:
    assert over_fetch(1000, 10, 1000) == 10
    assert over_fetch(1000, 10, 999) == 11
    assert 20 < over_fetch(1000, 10, 500) <= 80
    assert over_fetch(1000, 10, 500, effort=2 * 8) == min(8 * over_fetch(1000, 10, 500), 510)


def test_what_the_mask_excludes_is_dropped_and_a_short_result_says_so() -> None:
    engine = RemoteEngine(Ranked(), made_up())
    allowed = np.zeros(1000, bool)
    allowed[1::2] = True
    found = engine.search(np.zeros((2, 2), np.float32), 5, Mask(allowed), {})
    assert found.rows.tolist() == [[1, 3, 5, 7, 9]] * 2
    allowed[:] = False
    allowed[398:402] = True
    short = engine.search(np.zeros((1, 2), np.float32), 3, Mask(allowed), {}, 64)
    assert short.rows.tolist() == [[398, 399, -1]]
    assert engine.collection.fetched[-1] == Ranked.most  # type: ignore[attr-defined]


def test_a_comparison_that_takes_too_long_ends_and_is_no_outage() -> None:
    def slow() -> Neighbors:
        raise too_slow("made up", 400_000, 2)

    breaker = made_up()
    for _ in range(FAILURES + 1):
        with pytest.raises(FilterTooSlow, match="did not compare the 400000 rows"):
            breaker(slow)
    assert breaker.away() == ""
    with pytest.raises(TimeoutError, match="0 of 9 rows"):
        compare_fetched(
            lambda ids: np.zeros((len(ids), 2), np.float32), np.zeros((1, 2), np.float32), np.arange(9), 3, limit_s=-1
        )


def test_only_measurements_and_the_pipeline_compare_for_minutes() -> None:
    replica = Endpoint(timeout_s=2)
    assert exact_limit_s(replica) == 2
    assert exact_limit_s(Endpoint(timeout_s=10, exact_s=60)) == 60
    with measuring():
        assert exact_limit_s(replica, 600) == 600
    assert exact_limit_s(replica) == 2


def test_rows_that_somebody_else_wrote_meanwhile_are_left_out() -> None:
    collection = Ranked()
    engine = RemoteEngine(collection, made_up())
    engine.rows = 4
    collection.search = lambda *_: Neighbors(np.ones((1, 4), np.float32), np.array([[2, 7, 0, 4]]))  # type: ignore[method-assign]
    assert engine.search(np.zeros((1, 2), np.float32), 3, Mask(np.ones(4, bool)), {}).rows.tolist() == [[0, 2, -1]]
    assert engine.nearest(np.zeros((1, 2), np.float32), np.array([1, 5, 9]), 3).rows.tolist() == [[1, -1, -1]]


def test_rows_that_are_none_of_the_versions_are_no_rows() -> None:
    class Foreign(Ranked):
        def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict, effort: int) -> Neighbors:
            return Neighbors(np.array([[0.9, 0.8, 0.7]], np.float32), np.array([[-1, 5, 1000]]))

    found = RemoteEngine(Foreign(), made_up()).search(np.zeros((1, 2), np.float32), 3, None, {})
    assert found.rows.tolist() == [[5, -1, -1]]
    assert found.similarity[0].tolist() == [np.float32(0.8), -np.inf, -np.inf]


def test_the_newline_that_ends_a_file_of_secrets_is_no_part_of_them() -> None:
    assert Endpoint("http://host:1\n", " key\n") == Endpoint("http://host:1", "key")


ADDRESSES = {"pgvector": "postgresql://{}@db:5432/x", "milvus": "http://{}@db:19530"} | dict.fromkeys(
    ("qdrant", "weaviate", "pinecone"), "https://{}@db:6333"
)


@pytest.mark.parametrize("engine", ADDRESSES)
@pytest.mark.parametrize(
    "address", ["host:8080", "grpc://shop:hidden@host", "shop:hidden@host:1/x", "host=db password=hidden", "", "hidden@host"]
)
def test_an_address_that_is_none_is_one_sentence_without_secrets(engine: str, address: str) -> None:
    fault = address_fault(engine, address)
    assert re.fullmatch(f"VITRINE_ENGINE_ADDRESS='.*': {engine} is reached at .*", fault)
    assert "hidden" not in fault
    with pytest.raises(ContractError, match="VITRINE_ENGINE_ADDRESS"):
        open_collection(engine, Endpoint(address), "vitrine_0", 4)


@pytest.mark.parametrize("engine", ADDRESSES)
@pytest.mark.parametrize("between", ["@", "/", "%", "%zz", "%de", " ", "@/", "/@", "\t", "a/b@c"])
def test_a_password_that_is_not_percent_encoded_is_told_before_a_client_shows_it(engine: str, between: str) -> None:
    fault = address_fault(engine, ADDRESSES[engine].format(f"shop:hid{between}den"))
    assert "must be percent-encoded" in fault
    assert "hid" not in fault
    assert "den" not in fault


@pytest.mark.parametrize("engine", ADDRESSES)
def test_addresses_that_a_client_reads_are_no_fault(engine: str) -> None:
    for userinfo in ("shop:p%40ss%2Fw%25rd%C3%BC", "shop", "shop:pa:ss"):
        assert address_fault(engine, ADDRESSES[engine].format(userinfo)) == ""
    assert address_fault(engine, ADDRESSES[engine].replace("{}@", "")) == ""
    port = ADDRESSES[engine].rpartition(":")[0] + ":hidden"
    assert (address_fault(engine, port.replace("{}@", "")) == "") == (engine == "pgvector")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://shop:pw@one:5432,two:5433/x?target_session_attrs=read-write", "postgres://shop@db", "postgresql:///x?host=/run/pg",
        "postgresql://shop:@/x?host=/tmp/a%20b", "postgresql://%2Frun%2Fpg/x", "postgresql://shop:pa?s#s[@db/x",
    ],
)  # fmt: skip
def test_whatever_libpq_reads_is_an_address_of_postgresql(address: str) -> None:
    assert address_fault("pgvector", address) == ""


def test_an_engine_that_is_none_is_named_whatever_its_address() -> None:
    with pytest.raises(ContractError, match="there is no engine 'pgvectro'"):
        open_collection("pgvectro", Endpoint("postgresql://db/x"), "vitrine_0", 4)


def test_vectors_come_in_the_order_of_their_ids_and_one_that_is_missing_is_named() -> None:
    held = {n: [float(n)] for n in range(9)}
    found = fetch_vectors(lambda ids: {n: held[n] for n in sorted(ids) if n in held}, np.array([7, 1, 7, 3, 0]), 1, 2)
    assert found[:, 0].tolist() == [7, 1, 7, 3, 0]
    with pytest.raises(LookupError, match="it holds no vector under id 9"):
        fetch_vectors(lambda ids: {n: held[n] for n in ids if n in held}, np.array([3, 9]), 1, 2)
