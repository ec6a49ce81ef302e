"""The engine of a demo: started once, found again, stopped; not at all where an address is given."""

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tasks.demo import engine
from tasks.demo.engine import start_engine, stop_engine
from tasks.demo.supervisor import Supervisor
from tasks.errors import VitrineError
from tasks.settings import Settings
from tests.servers import free_port, postgres_package


@pytest.fixture
def home() -> Iterator[Path]:
    """A home outside pytest's folder, which PostgreSQL's user may not enter."""
    postgres_package()
    with tempfile.TemporaryDirectory(prefix="vitrine-demo-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
        stop_engine(Path(folder))


@pytest.mark.slow
def test_postgres_is_started_once_found_again_and_stopped(home: Path) -> None:
    settings = replace(Settings(), home=home, engine="pgvector")
    address = start_engine(settings, Supervisor(home))
    with psycopg.connect(address) as connection:
        connection.execute("CREATE EXTENSION vector")
        first = connection.execute("SELECT pg_postmaster_start_time()").fetchone()
    assert start_engine(settings, Supervisor(home)) == address
    assert start_engine(replace(settings, engine="faiss"), Supervisor(home)) == address, "a version of before may be live"
    with psycopg.connect(address) as connection:
        assert connection.execute("SELECT pg_postmaster_start_time()").fetchone() == first
    assert stop_engine(home)
    assert not stop_engine(home)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(address)


def test_an_engine_with_an_address_and_faiss_start_nothing(tmp_path: Path) -> None:
    settings = replace(Settings(), home=tmp_path)
    assert start_engine(settings, Supervisor(tmp_path)) == ""
    given = replace(settings, engine="milvus", engine_address="http://milvus:19530")
    assert start_engine(given, Supervisor(tmp_path)) == "http://milvus:19530"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_started_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VitrineError, match="VITRINE_ENGINE='faise' is not known"):
        start_engine(replace(Settings(), home=tmp_path, engine="faise"), Supervisor(tmp_path))
    monkeypatch.setitem(engine.PACKAGES, "milvus", "no-such-package")
    with pytest.raises(VitrineError, match="ENGINE=milvus needs the package no-such-package"):
        start_engine(replace(Settings(), home=tmp_path, engine="milvus"), Supervisor(tmp_path))


@pytest.mark.parametrize("port", ["ETCD_PEERS", "MILVUS_PORT"])
def test_a_second_milvus_is_refused_at_once_in_one_sentence(port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its ports the first one shows; nothing that listens is waited for."""
    monkeypatch.setattr(engine, "_wait_until_free", lambda *_: pytest.fail("it waits"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(engine, "ETCD_PEERS", free_port())
        monkeypatch.setattr(engine, port, taken.getsockname()[1])
        with pytest.raises(VitrineError, match=f"port {taken.getsockname()[1]} is taken, probably by another Milvus"):
            start_engine(replace(Settings(), home=tmp_path, engine="milvus"), Supervisor(tmp_path))


def test_a_port_that_closed_connections_still_hold_is_waited_for_and_that_is_told() -> None:
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(VitrineError, match=f"port {port} is taken"):
            engine._wait_until_free(port, told.append, limit_s=0.2)
    assert told == [f"port {port} is still held by connections of a Milvus before; it is waited for, at most 0 s"]
    engine._wait_until_free(port, told.append, limit_s=5)
    assert len(told) == 1
