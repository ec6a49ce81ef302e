import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psycopg
import pytest

from serving.contract.provenance import EngineRef
from serving.index.engine import FilterTooSlow, Mask
from serving.index.remote_engine import connect
from serving.index.searcher import Searcher
from tasks.errors import ServiceAway, VitrineError
from tasks.index.engine_collections import ALIAS, open_collections, recorded_collections
from tasks.index.pgvector_collections import build_memory_mb
from tasks.pipelines.collection_steps import check_engine
from tasks.release.retention.garbage import _collections, _drop
from tasks.release.retention.policy import Reachable, Retention, reachable
from tasks.settings import Settings
from tests.engines.contract import Builder, EngineContract, Made, N
from tests.engines.servers import EngineServer, pgvector_server
from tests.index.shop import Shop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[EngineServer]:
    with pgvector_server() as engine:
        yield engine


class TestHnsw(EngineContract):
    engine = "pgvector"

    def test_garbage_is_a_collection_that_nothing_names_and_the_live_one_has_an_alias(
        self, builder: Builder, made: Made, shop: Shop
    ) -> None:
        lost = builder.make(shop, "garbage")
        assert lost.manifest.engine
        store, name, held = lost.settings.store_uri, lost.manifest.engine.collection, builder.collections()
        held.point(ALIAS, name)
        with psycopg.connect(builder.server.endpoint.address) as connection:
            assert connection.execute(f"SELECT count(*) FROM {ALIAS}").fetchone() == (N,)

        def garbage(needed: Reachable, gone: set[str], now: float) -> list[str]:
            return [item.uri for item in _collections(store, needed, gone, Retention(), now)]

        needed, later = reachable({"run": lost.manifest}), time.time() + 8 * 86_400
        assert garbage(needed, {"garbage"}, later) == []
        assert garbage(Reachable(), set(), time.time()) == []
        (folder,) = garbage(Reachable(), {"garbage"}, time.time())
        assert garbage(Reachable(), set(), later) == [folder]
        away = SimpleNamespace(endpoint=replace(builder.server.endpoint, address="postgresql://127.0.0.1:1/x"))
        _drop(away, folder)  # type: ignore[arg-type]
        assert held.count(name, 0, N) == N
        _drop(SimpleNamespace(endpoint=builder.server.endpoint), folder)  # type: ignore[arg-type]
        assert held.count(name, 0, N) == 0
        assert recorded_collections(store) == {}
        assert held.count(made.manifest.engine.collection, 0, N) == N  # type: ignore[union-attr]

    def test_a_frozen_server_ends_a_search_and_leaves_no_thread_waiting(self, made: Made, xq: np.ndarray) -> None:
        quick = replace(made.settings.endpoint, timeout_s=3.0)
        searcher = Searcher.open(made.manifest, made.locate, endpoint=quick)
        connections = searcher.remote.collection.connections  # type: ignore[union-attr]
        with connections.use() as connection:
            backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            assert len(searcher.search(xq[:1], 5).rows[0]) == 5  # another attempt, over a new connection
        finally:
            os.kill(backend, signal.SIGCONT)
        assert connection.closed

    def test_a_comparison_that_takes_too_long_is_no_outage(self, made: Made, xq: np.ndarray) -> None:
        searcher = made.open()
        remote = searcher.remote
        assert remote is not None
        remote.collection.connections.endpoint = replace(remote.collection.connections.endpoint, exact_s=0.001)  # type: ignore[attr-defined]
        for _ in range(4):
            with pytest.raises(FilterTooSlow, match="did not compare"):
                remote.nearest(np.tile(xq, (100, 1)), np.arange(N - 1), 5)
        assert searcher.away() == ""
        assert len(searcher.exact(xq, 5).rows) == len(xq)  # a measurement takes the time it needs

    def test_a_collection_that_is_there_is_not_altered_under_its_searches(self, builder: Builder, made: Made) -> None:
        assert made.manifest.engine
        with psycopg.connect(builder.server.endpoint.address) as reading:
            reading.execute(f"SELECT id FROM {made.manifest.engine.collection} LIMIT 1")
            builder.collections().create(made.manifest.engine.collection, 24, made.template.factory)  # would wait for ever

    def test_rows_that_somebody_else_writes_into_a_table_change_no_answer(
        self, builder: Builder, shop: Shop, xq: np.ndarray
    ) -> None:
        mine = builder.make(shop, "foreign")
        assert mine.manifest.engine
        searcher, name = mine.open(), mine.manifest.engine.collection
        allowed = np.random.default_rng(5).random(N) < 0.5
        few = np.arange(N) < 40

        def answers() -> list[list[list[int]]]:
            found = (
                searcher.search(xq, 20),
                searcher.search(xq, 20, allowed),
                searcher.search(xq, 20, few),
                searcher.exact(xq, 20),
            )
            return [f.rows.tolist() for f in found]

        before = answers()
        with psycopg.connect(builder.server.endpoint.address) as connection:
            for foreign in (-3, N, 8 * N, 2**62):
                connection.execute(f"INSERT INTO {name} VALUES (%s, %s::vector)", (foreign, str(xq[0].tolist())))
        after = answers()
        assert after[1:] == before[1:]
        assert np.mean([len(set(a) & set(b)) / 20 for a, b in zip(before[0], after[0], strict=True)]) >= 0.95
        assert searcher.away() == ""
        builder.collections().drop(name)


@contextmanager
def database(server: EngineServer, name: str, *statements: str) -> Iterator[str]:
    """The address of a new database in which these statements were run."""
    with psycopg.connect(server.endpoint.address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    address = server.endpoint.address.replace("/postgres?", f"/{name}?")
    try:
        with psycopg.connect(address, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)
        yield address
    finally:
        with psycopg.connect(server.endpoint.address, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def as_role(address: str, role: str) -> str:
    return address.replace("postgres:@", f"{role}:x@")


PLAIN = "CREATE EXTENSION vector"
VECTORS = np.eye(8, dtype=np.float32)


@pytest.mark.parametrize(
    ("statements", "options", "role", "fault"),
    [
        (["CREATE SCHEMA ext", "CREATE EXTENSION vector SCHEMA ext"], "", "postgres", "schema that is not on the search_path"),
        (["CREATE SCHEMA ext", "CREATE EXTENSION vector SCHEMA ext"], "public,ext", "postgres", ""),
        (["CREATE SCHEMA shop", PLAIN], "shop,public", "postgres", ""),
        ([PLAIN, "UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'"], "", "postgres", "0.7.4, and 0.8 or newer"),
        ([], "", "pipeline", "has no extension vector .*permission denied"),
        ([PLAIN, "REVOKE CREATE ON SCHEMA public FROM public"], "", "pipeline", "may not create tables"),
        ([PLAIN], "nowhere,pg_catalog", "postgres", "not on the search_path"),
    ],
)  # fmt: skip
def test_what_a_database_lacks_is_told_before_anything_is_embedded_and_a_search_path_holds_for_all(
    server: EngineServer, statements: list[str], options: str, role: str, fault: str
) -> None:
    with database(
        server, "other", "DROP ROLE IF EXISTS pipeline", "CREATE ROLE pipeline LOGIN PASSWORD 'x'", *statements
    ) as address:
        there = as_role(address, role) + (f"&options=-csearch_path%3D{options.replace(',', '%2C')}" if options else "")
        chosen = replace(Settings(), engine="pgvector", engine_address=there)
        if fault:
            with pytest.raises(VitrineError, match=fault) as raised:
                check_engine(chosen)
            assert not isinstance(raised.value, ServiceAway)  # no other attempt would find it otherwise
            return
        check_engine(chosen)
        held = open_collections("pgvector", chosen.endpoint)
        held.create("vitrine_a", 8, "hnsw,m=16,ef_construction=100")
        held.put("vitrine_a", 0, VECTORS)
        held.complete("vitrine_a", "hnsw,m=16,ef_construction=100", 8)
        opened = connect(EngineRef(name="pgvector", collection="vitrine_a", rows=8, digest="0" * 64), chosen.endpoint, 8)
        assert opened.search(VECTORS, 1, None, {}).rows.tolist() == [[n] for n in range(8)]


def test_the_users_of_the_documentation_may_do_what_each_has_to(server: EngineServer) -> None:
    page = (Path(__file__).parents[2] / "docs/operate/engines.md").read_text()
    block = next(part for part in page.split("```")[1::2] if "CREATE EXTENSION" in part)
    of_server, of_database = ([line for line in part.splitlines() if line] for part in block.split("\\c vectors\n"))
    roles, made = ("vitrine_vectors", "vitrine_replica"), "CREATE DATABASE vectors;"
    begin = "REVOKE CREATE ON SCHEMA public FROM public"
    after = [line for line in of_server if line != made]  # `database` makes it
    assert made in of_server
    with database(server, "vectors", *after, begin, *of_database) as address:
        with psycopg.connect(address, autocommit=True) as connection:
            for role in roles:
                connection.execute(f"ALTER ROLE {role} PASSWORD 'x'")
        chosen = replace(Settings(), engine="pgvector", engine_address=as_role(address, "vitrine_vectors"))
        check_engine(chosen)
        held = open_collections("pgvector", chosen.endpoint)
        for name in ("vitrine_a", "vitrine_b"):
            held.create(name, 8, "ivfflat,lists=1")
            held.put(name, 0, VECTORS)
            held.complete(name, "ivfflat,lists=1", 8)
            held.point(ALIAS, name)
        reader = replace(chosen.endpoint, address=as_role(address, "vitrine_replica"))
        opened = connect(EngineRef(name="pgvector", collection="vitrine_b", rows=8, digest="0" * 64), reader, 8)
        assert opened.search(VECTORS, 1, Mask(np.arange(8) > 3), {}).rows[4:].tolist() == [[n] for n in range(4, 8)]
        assert opened.nearest(VECTORS, np.arange(5), 1).rows[:5].tolist() == [[n] for n in range(5)]
        with psycopg.connect(reader.address) as connection:
            assert connection.execute(f"SELECT count(*) FROM {ALIAS}").fetchone() == (8,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("DELETE FROM vitrine_b")
        held.drop("vitrine_b")


def test_an_index_is_built_by_one_process_where_shared_memory_does_not_hold_it(
    server: EngineServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.index.pgvector_collections.MOST_BUILD_MB", 2**20)  # a TiB: more than any /dev/shm has
    monkeypatch.setattr("tasks.index.pgvector_collections.build_memory_mb", lambda *_: 2**20)
    with database(server, "small", PLAIN) as address:
        held = open_collections("pgvector", replace(server.endpoint, address=address))
        held.create("vitrine_a", 8, "hnsw,m=16,ef_construction=100")
        held.put("vitrine_a", 0, VECTORS)
        with psycopg.connect(address) as connection:
            connection.execute("ALTER TABLE vitrine_a SET (parallel_workers = 2)")
        held.complete("vitrine_a", "hnsw,m=16,ef_construction=100", 8)
        with psycopg.connect(address) as connection:
            built = connection.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'vitrine_a_index'").fetchone()
    assert built
    assert "USING hnsw" in built[0]
    assert "its index is built by one process" in caplog.text


@pytest.mark.parametrize("processes", [0, 2])
def test_a_build_gets_the_memory_that_its_index_needs_up_to_a_limit_and_says_where_that_was_too_little(
    server: EngineServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, processes: int
) -> None:
    rows, factory = 12_000, "hnsw,m=16,ef_construction=32"
    x = np.random.default_rng(7).standard_normal((rows, 8)).astype(np.float32)
    with database(server, "memory", PLAIN) as address:
        little = f"{address}&options=-cmaintenance_work_mem%3D8MB"
        held = open_collections("pgvector", replace(server.endpoint, address=little))
        held.create("vitrine_a", 8, factory)
        held.put("vitrine_a", 0, x)
        with psycopg.connect(address) as connection:
            connection.execute(f"ALTER TABLE vitrine_a SET (parallel_workers = {processes})")
        held.complete("vitrine_a", factory, rows)
        assert caplog.text == ""
        with psycopg.connect(address) as connection:
            connection.execute("DROP INDEX vitrine_a_index")
        monkeypatch.setattr("tasks.index.pgvector_collections.MOST_BUILD_MB", 1)
        held.complete("vitrine_a", factory, rows)
        assert "no longer fits into maintenance_work_mem" in caplog.text
        assert "ALTER ROLE" in caplog.text


def test_lists_get_the_memory_that_they_need_or_the_build_says_how_they_get_it(
    server: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, factory = 12_000, "ivfflat,lists=256"
    with database(server, "lists", PLAIN) as address:
        little = f"{address}&options=-cmaintenance_work_mem%3D8MB"
        held = open_collections("pgvector", replace(server.endpoint, address=little))
        held.create("vitrine_a", 8, factory)
        held.put("vitrine_a", 0, np.random.default_rng(7).standard_normal((rows, 8)).astype(np.float32))
        with monkeypatch.context() as patched:
            patched.setattr("tasks.index.pgvector_collections.MOST_BUILD_MB", 1)
            with pytest.raises(VitrineError, match=r"memory required is .* ALTER ROLE"):
                held.complete("vitrine_a", factory, rows)
        held.complete("vitrine_a", factory, rows)


@pytest.mark.parametrize(
    ("factory", "rows", "dim", "measured_mb"),
    [
        ("hnsw,m=16,ef_construction=100", 4555, 512, 12),
        ("hnsw,m=16,ef_construction=100", 1832, 1536, 12),
        ("ivfflat,lists=300", 30_000, 128, 26),
        ("ivfflat,lists=1000", 30_000, 128, 145),
    ],
)
def test_the_memory_of_a_build_is_a_little_more_than_was_measured(factory: str, rows: int, dim: int, measured_mb: int) -> None:
    assert measured_mb <= build_memory_mb(factory, rows, dim) <= 1.1 * measured_mb + 9
