"""A PostgreSQL that takes a connection and says nothing."""

import socket

import pytest

from tasks.catalog.changes.outbox_database import Postgres
from tasks.catalog.sources import postgresql
from tasks.catalog.sources.postgresql import open_postgresql
from tasks.errors import VitrineError


def test_a_silent_server_is_one_sentence_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(postgresql.LIMITS, "connect_timeout", 2)  # the least that libpq takes
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"postgresql://user:a-secret@127.0.0.1:{silent.getsockname()[1]}/shop"
        for ask in (lambda: open_postgresql(f"{address}?image_root=/pictures").__enter__(), lambda: Postgres(address)):
            with pytest.raises(VitrineError, match="PostgreSQL does not answer") as caught:
                ask()
            assert "a-secret" not in str(caught.value)


def test_limits_of_the_address_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    from adbc_driver_postgresql import dbapi

    asked: list[str] = []
    monkeypatch.setattr(dbapi, "connect", asked.append)
    for address in (
        "postgresql://h/d",
        "postgresql://h/d?connect_timeout=3&image_root=/p",
        "postgresql://h/d?tcp_user_timeout=1&connect_timeout=3",
    ):
        postgresql.connect(address)
    assert asked == [
        "postgresql://h/d?connect_timeout=10&tcp_user_timeout=60000",
        "postgresql://h/d?connect_timeout=3&tcp_user_timeout=60000",
        "postgresql://h/d?tcp_user_timeout=1&connect_timeout=3",
    ]  # fmt: skip
