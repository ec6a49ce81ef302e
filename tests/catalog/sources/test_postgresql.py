"""A PostgreSQL server that goes away in the middle: its step is tried again, which an unreadable catalogue's is not."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from adbc_driver_postgresql import dbapi

from tasks.catalog.changes.outbox_database import Postgres
from tasks.catalog.sources import SourceOptions
from tasks.catalog.sources.postgresql import lost_connection, open_postgresql
from tasks.errors import CatalogAway, CatalogError
from tests.servers import postgres_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as uri:
        run(uri, "CREATE TABLE products (product_id text, title text, image text)")
        yield uri


def run(uri: str, command: str) -> None:
    with dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(command)


def end_others(uri: str) -> None:
    """Ends every other connection, as a server that is restarted does."""
    run(
        uri,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )


def test_a_connection_that_is_lost_while_the_catalogue_is_read(server: str) -> None:
    with open_postgresql(server) as source:
        end_others(server)
        with pytest.raises(CatalogAway, match="does not answer any more: "):
            list(source.photos())
    with (
        pytest.raises(CatalogError, match="cannot be run") as raised,
        open_postgresql(server, SourceOptions(query="SELECT 1 +")) as source,
    ):
        list(source.products())
    assert not isinstance(raised.value, CatalogAway), "nothing tries it again"


def test_a_connection_that_is_lost_while_the_outbox_is_written(server: str) -> None:
    with closing(Postgres(server)) as database:
        lose_while_writing(server, database)


def lose_while_writing(server: str, database: Postgres) -> None:
    with pytest.raises(CatalogError, match="the outbox cannot be written") as raised, database.transaction():
        database.execute("INSERT INTO nowhere VALUES (1)")
    assert not isinstance(raised.value, CatalogAway)
    end_others(server)
    with pytest.raises(CatalogAway, match="the outbox cannot be written"), database.transaction():
        database.execute("CREATE TABLE outbox (id int)")


def test_what_is_no_error_of_the_driver_is_no_lost_connection() -> None:
    assert not lost_connection(ValueError("a value"))
