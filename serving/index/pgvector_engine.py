"""A collection in PostgreSQL with pgvector: a table of `id` bigint and `embedding` vector(d), with an HNSW or IVFFlat index.

Row masks are applied in SQL, as one bit a row, within an iterative scan of the index: exactly, whatever a filter says, and without
over-fetching. Exact comparisons run there too.
"""

import math
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, LifoQueue
from typing import Any

import numpy as np
import psycopg
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from serving.circuit_breaker import Errors
from serving.contract.manifest import Scalar
from serving.index.collection import (
    MEASURE_S,
    Endpoint,
    exact_limit_s,
    fetch_vectors,
    ids_missing,
    no_collection,
    other_dimension,
    too_slow,
)  # fmt: skip
from serving.index.engine import Mask
from serving.index.merge import Neighbors, empty, stack

MAX_EF, PROBES = 1000, 16
EF = 64
"""Defaults where a manifest sets none; pgvector takes an ef_search of at most 1000 and scans on from there."""
SCANNED = 20_000
"""Rows that an iterative scan visits at most at effort 1 (pgvector's own default)."""
FEW, SPARSE = 5000, 8
"""Up to FEW ids, or one row in SPARSE, are looked up by id; more are found by reading the table. Measured: 7 us an id, 0.6 us a row of
dimension 64, so that a filter that leaves 20,000 of a million rows does not read all of these."""
WIDEST = 64
"""The greatest effort by which SCANNED grows."""
ALLOWED = "CASE WHEN id >= 0 AND id < %(rows)s THEN get_bit(%(bits)b, id) ELSE 0 END = 1"
"""That a mask allows a row: get_bit of a bytea counts from the lowest bit of each byte, as Mask.bits does, and fails beyond the last."""
GRACE_S = 1.0
"""How much later than PostgreSQL itself a replica gives a statement up."""
TRANSIENT: Errors = (psycopg.OperationalError,)


class LimitedConnection(psycopg.Connection):
    """A connection that waits at most `limit_s` for each answer: a server that is frozen, or out of reach, ends no statement.

    Overrides `psycopg.Connection.wait(gen, interval)`, by which psycopg runs every statement: `gen` yields what it waits for, and is
    sent what is ready, nothing after each `interval`. PostgreSQL keeps `statement_timeout` itself, and `tcp_user_timeout` misses a
    frozen server whose kernel acknowledges; psycopg limits no statement itself.
    """

    limit_s = math.inf

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        return super().wait(self._limited(gen), *args, **options)

    def _limited(self, gen: Any) -> Generator[Any, Any, Any]:
        until, ready = time.monotonic() + self.limit_s, None
        while True:
            try:
                state = gen.send(ready)
            except StopIteration as end:
                return end.value
            ready = yield state
            if not ready and time.monotonic() > until:
                self.close()
                raise psycopg.OperationalError(f"PostgreSQL gives no answer in {self.limit_s:g} s")


class Connections:
    """Open connections to one address, as many as are used at once. One that fails takes the idle ones with it: all may be dead."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.idle = endpoint, LifoQueue[LimitedConnection]()
        weakref.finalize(self, _close_all, self.idle)

    @contextmanager
    def use(self, seconds: float = 0.0) -> Iterator[LimitedConnection]:
        """A connection whose statements may take `seconds`; 0: as long as a call. Raises TimeoutError where one takes longer."""
        try:
            connection = self.idle.get_nowait()
        except Empty:
            connection = self._connect()
        connection.limit_s = (seconds or self.endpoint.timeout_s) + GRACE_S
        try:
            yield connection
        except psycopg.errors.QueryCanceled as error:  # the connection is whole; another attempt would take as long
            raise TimeoutError(str(error)) from error
        except psycopg.OperationalError:
            connection.close()
            self.close()
            raise
        finally:
            if not connection.closed:
                self.idle.put(connection)

    def close(self) -> None:
        """Closes the idle connections."""
        _close_all(self.idle)

    def _connect(self) -> LimitedConnection:
        seconds = self.endpoint.timeout_s
        # Options of the address, such as a search_path, would be replaced by ours.
        given = conninfo_to_dict(self.endpoint.address).get("options") or os.environ.get("PGOPTIONS", "")
        connection = LimitedConnection.connect(
            self.endpoint.address, autocommit=True, connect_timeout=max(2, int(seconds)),
            options=f"{given} -c statement_timeout={int(seconds * 1000)}", tcp_user_timeout=int(seconds * 1000),
        )  # fmt: skip
        connection.limit_s = seconds + GRACE_S
        register_vector(connection)
        return connection


def _close_all(idle: LifoQueue[LimitedConnection]) -> None:
    with suppress(Empty):
        while True:
            idle.get_nowait().close()


class PgvectorCollection:
    """A table, read-only. `most`: PostgreSQL sets no limit to k."""

    takes_masks = True

    def __init__(self, endpoint: Endpoint, name: str, dim: int) -> None:
        self.table, self.dim = sql.Identifier(name), dim
        self.connections = Connections(endpoint)
        self.rows = self._size(name)
        self.most = max(self.rows, 1)

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int) -> Neighbors:
        allowed = sql.SQL("" if mask is None else f"WHERE {ALLOWED}")
        text = sql.SQL("SELECT id, -(embedding <#> %(x)b) FROM {} {} ORDER BY embedding <#> %(x)b LIMIT %(k)s").format(
            self.table, allowed
        )
        bits = None if mask is None else mask.bits.tobytes()
        visited = k if mask is None else math.ceil(k * self.rows / max(mask.count, 1))
        with self._settings(_scan(params, effort, visited)) as connection:
            return self._ranked(connection, text, xq, k, {"bits": bits, "rows": self.rows})

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        where, arguments = self._among(positions)
        # The sum keeps PostgreSQL from taking the index, which orders by the operator alone.
        text = sql.SQL("SELECT id, -(embedding <#> %(x)b) FROM {} {} ORDER BY (embedding <#> %(x)b) + 0 LIMIT %(k)s").format(
            self.table, where
        )
        seconds = exact_limit_s(self.connections.endpoint)
        try:
            with self._settings({"statement_timeout": str(int(seconds * 1000))}, seconds) as connection:
                return self._ranked(connection, text, xq, k, arguments)
        except TimeoutError as error:
            raise too_slow("pgvector", len(positions), seconds) from error

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        text = sql.SQL("SELECT id, embedding FROM {} WHERE id = ANY(%(ids)s)").format(self.table)

        def fetch(ids: list[int]) -> dict[int, Any]:
            with self._settings({}) as connection:
                found = connection.execute(text, {"ids": sorted(set(ids))}, binary=True).fetchall()
            return {row: vector.to_numpy() for row, vector in found}

        return fetch_vectors(fetch, positions, self.dim, max(len(positions), 1))

    def _size(self, name: str) -> int:
        """The number of rows. Raises ContractError where there is no such table, or it has another dimension."""
        with self.connections.use(MEASURE_S) as connection:
            found = connection.execute(
                "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'embedding'",
                (f'"{name}"',),
            ).fetchone()
            if found is None:
                raise no_collection("pgvector", name)
            if found[0] != self.dim:
                raise other_dimension(name, found[0], self.dim)
            connection.execute("SELECT set_config('statement_timeout', %s, false)", (str(int(MEASURE_S * 1000)),))
            counted = connection.execute(sql.SQL("SELECT count(*), max(id) FROM {}").format(self.table)).fetchone()
            connection.execute("RESET statement_timeout")
        assert counted is not None
        if counted[0] and counted[1] != counted[0] - 1:
            raise ids_missing(name, counted[0])
        return int(counted[0])

    def _among(self, positions: np.ndarray) -> tuple[sql.SQL, dict[str, Any]]:
        """The condition that a row is at one of these positions, and its arguments."""
        if len(positions) == self.rows:
            return sql.SQL("WHERE id >= 0 AND id < %(rows)s"), {"rows": self.rows}
        if len(positions) <= max(FEW, self.rows // SPARSE):
            return sql.SQL("WHERE id = ANY(%(ids)s)"), {"ids": positions.tolist()}
        allowed = np.zeros(self.rows, bool)
        allowed[positions] = True
        return sql.SQL(f"WHERE {ALLOWED}"), {"bits": Mask(allowed).bits.tobytes(), "rows": self.rows}

    @contextmanager
    def _settings(self, values: dict[str, str], seconds: float = 0.0) -> Iterator[psycopg.Connection]:
        """A connection in a transaction with these settings."""
        with self.connections.use(seconds) as connection, connection.transaction():
            if values:
                chosen = sql.SQL(", ").join(sql.SQL("set_config({}, {}, true)").format(n, v) for n, v in values.items())
                connection.execute(sql.SQL("SELECT {}").format(chosen))
            yield connection

    def _ranked(
        self, connection: psycopg.Connection, text: sql.Composed, xq: np.ndarray, k: int, arguments: dict[str, Any]
    ) -> Neighbors:
        results = []
        for x in xq:
            found = connection.execute(text, {"x": Vector(x), "k": k} | arguments, binary=True).fetchall()
            if found:
                rows, similarity = zip(*found, strict=True)
                results.append(Neighbors(np.array([similarity], np.float32), np.array([rows], np.int64)))
            else:
                results.append(empty(1, k))
        return stack(results, k)


def _scan(params: dict[str, Scalar], effort: int, visited: int) -> dict[str, str]:
    """PostgreSQL's settings for a search: how wide it is, and that it goes on until k rows are found.

    It begins as wide as the rows that it will probably visit: to go on from a narrow scan finds less, and takes no less time.
    """
    ef, probes = (int(params.get(name) or default) * effort for name, default in (("ef", EF), ("nprobe", PROBES)))
    ef = max(ef, visited)
    return {
        "enable_seqscan": "off", "hnsw.ef_search": str(min(ef, MAX_EF)), "hnsw.iterative_scan": "strict_order",
        "hnsw.max_scan_tuples": str(SCANNED * min(effort, WIDEST)), "ivfflat.probes": str(min(probes, 32_768)),
        "ivfflat.iterative_scan": "relaxed_order",
    }  # fmt: skip


open_collection: Callable[[Endpoint, str, int], PgvectorCollection] = PgvectorCollection
