"""Collections as tables of PostgreSQL with pgvector: filled by COPY, a block per transaction; the index is built at the end.

Where a killed upload goes on is in upload.py.
"""

import logging
import math

import numpy as np
import psycopg
from pgvector.psycopg import register_vector
from psycopg import sql

from serving.contract.addresses import error_line
from serving.index.collection import Endpoint
from tasks.errors import VitrineError

log = logging.getLogger(__name__)

LEAST_VERSION = (0, 8)
"""pgvector's iterative scans."""
HNSW_DIMENSIONS = 2000
"""Most dimensions of pgvector's indexes over float32."""
PLAIN_DIMENSIONS = 1900
"""Up to so many, a vector fits into its row's page and need not be fetched from a second table."""
GRAPH_BYTES = 720
"""Bytes of a row in the graph of M 16 that HNSW builds in memory, besides its vector; measured: 715 to 724 at 8 to 1536 dimensions."""
MOST_BUILD_MB = 2048
"""Most MiB of maintenance_work_mem that a build asks for, unless PostgreSQL gives its user more by itself. A graph that does not fit
is built many times slower. Several processes build it in shared memory, of which containers have 64 MB unless they are given more."""
MORE_MEMORY = "ALTER ROLE … SET maintenance_work_mem gives the pipeline's user more"


class PgvectorCollections:
    """Tables in the database at the endpoint's address; each call opens its own connection."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        try:
            with self._connect() as connection:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                self._check(connection)
        except psycopg.ProgrammingError as error:  # it is not installed, or only a superuser may create it
            raise VitrineError(
                f"PostgreSQL has no extension vector (pgvector), and does not create it: {error_line(error)}"
            ) from None

    @staticmethod
    def _check(connection: psycopg.Connection) -> None:
        """Raises VitrineError where tables with vectors cannot be made: before hours of embedding."""
        text = (
            "SELECT extversion, to_regtype('vector') IS NOT NULL, current_schema(), has_schema_privilege(current_schema(), 'CREATE') "
            "FROM pg_extension WHERE extname = 'vector'"
        )
        found = connection.execute(text).fetchone()
        assert found is not None
        version, in_path, schema, may_create = found
        if tuple(int(part) for part in version.split(".")[:2]) < LEAST_VERSION:
            raise VitrineError(f"PostgreSQL has pgvector {version}, and 0.8 or newer is needed: ALTER EXTENSION vector UPDATE")
        if not in_path:
            raise VitrineError(
                "PostgreSQL has pgvector in a schema that is not on the search_path of the user of VITRINE_ENGINE_ADDRESS"
            )
        if not may_create:
            raise VitrineError(f"the user of VITRINE_ENGINE_ADDRESS may not create tables in PostgreSQL (schema {schema})")

    def create(self, name: str, dim: int, factory: str) -> None:
        if dim > HNSW_DIMENSIONS:
            raise VitrineError(f"pgvector indexes at most {HNSW_DIMENSIONS} dimensions, and the encoder gives {dim}")
        table = sql.Identifier(name)
        text = "CREATE TABLE IF NOT EXISTS {} (id bigint PRIMARY KEY, embedding vector({}) NOT NULL)"
        with self._connect() as connection:
            if self._is_there(connection, name):  # replicas may be searching it: an ALTER TABLE would wait for all of them
                return
            connection.execute(sql.SQL(text).format(table, sql.Literal(dim)))
            if dim <= PLAIN_DIMENSIONS:
                connection.execute(sql.SQL("ALTER TABLE {} ALTER COLUMN embedding SET STORAGE PLAIN").format(table))

    def put(self, name: str, first: int, vectors: np.ndarray) -> None:
        table = sql.Identifier(name)
        copy_in = sql.SQL("COPY {} (id, embedding) FROM STDIN WITH (FORMAT BINARY)").format(table)
        with self._connect() as connection:
            register_vector(connection)  # before there is a cursor, which takes over what is registered by then
            connection.execute(sql.SQL("DELETE FROM {} WHERE id >= %s AND id < %s").format(table), (first, first + len(vectors)))
            with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
                copy.set_types(["int8", "vector"])
                for number, vector in enumerate(vectors, first):
                    copy.write_row((number, vector))

    def count(self, name: str, first: int, stop: int) -> int:
        with self._connect() as connection:
            if not self._is_there(connection, name):
                return 0
            text = sql.SQL("SELECT count(*) FROM {} WHERE id >= %s AND id < %s").format(sql.Identifier(name))
            found = connection.execute(text, (first, stop)).fetchone()
        return int(found[0]) if found else 0

    def complete(self, name: str, factory: str, rows: int) -> None:
        kind, options = _index_of(factory)
        text = "CREATE INDEX IF NOT EXISTS {} ON {} USING {} (embedding vector_ip_ops) WITH ({})"
        index = sql.SQL(text).format(
            sql.Identifier(f"{name}_index"), sql.Identifier(name), sql.SQL(kind), sql.SQL(options)
        )  # fmt: skip
        memory = {"maintenance_work_mem": f"{self._memory_mb(name, factory, rows)}MB"}
        try:
            self._build(name, index, memory)
        except psycopg.errors.DiskFull as error:  # or a disk that is full indeed, which the second build meets again
            log.warning(
                "collection %s: %s; its index is built by one process, which needs no shared memory", name, error_line(error)
            )
            self._build(name, index, memory | {"max_parallel_maintenance_workers": "0"})
        with self._connect(autocommit=True) as connection:
            connection.execute(sql.SQL("VACUUM ANALYZE {}").format(sql.Identifier(name)))

    def _memory_mb(self, name: str, factory: str, rows: int) -> int:
        """What the index of a collection needs, up to MOST_BUILD_MB, or the user's own maintenance_work_mem where that is more."""
        text = (
            "SELECT atttypmod, setting::int / 1024 FROM pg_attribute, pg_settings "
            "WHERE attrelid = to_regclass(%s) AND attname = 'embedding' AND pg_settings.name = 'maintenance_work_mem'"
        )
        with self._connect() as connection:
            found = connection.execute(text, (f'"{name}"',)).fetchone()
        assert found is not None
        dim, own_mb = found
        return min(build_memory_mb(factory, rows, dim), max(own_mb, MOST_BUILD_MB))

    def _build(self, name: str, index: sql.Composed, values: dict[str, str]) -> None:
        def warn(notice: psycopg.errors.Diagnostic) -> None:
            if "maintenance_work_mem" in (notice.message_primary or ""):
                log.warning("collection %s: %s; %s", name, notice.message_primary, MORE_MEMORY)

        with self._connect() as connection:
            connection.add_notice_handler(warn)
            for setting, value in values.items():
                connection.execute("SELECT set_config(%s, %s, true)", (setting, value))
            try:
                connection.execute(index)
            except psycopg.errors.ProgramLimitExceeded as error:  # the lists of ivfflat do not fit into the memory
                raise VitrineError(f"PostgreSQL does not build the index of {name}: {error_line(error)}; {MORE_MEMORY}") from None

    def drop(self, name: str) -> None:
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(sql.Identifier(name)))

    def point(self, alias: str, name: str) -> None:
        text = sql.SQL("CREATE OR REPLACE VIEW {} AS SELECT id, embedding FROM {}")
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(sql.Identifier(alias)))
            connection.execute(text.format(sql.Identifier(alias), sql.Identifier(name)))

    @staticmethod
    def _is_there(connection: psycopg.Connection, name: str) -> bool:
        return connection.execute("SELECT to_regclass(%s)", (f'"{name}"',)).fetchone() != (None,)

    def _connect(self, autocommit: bool = False) -> psycopg.Connection:
        return psycopg.connect(self.endpoint.address, connect_timeout=max(2, int(self.endpoint.timeout_s)), autocommit=autocommit)


def build_memory_mb(factory: str, rows: int, dim: int) -> int:
    """MiB in which pgvector (0.8.5) builds an index of so many vectors: the graph of hnsw; of ivfflat 50 samples a list, at least
    10,000, and their bounds to every list (Elkan's k-means)."""
    kind, options = _index_of(factory)
    if kind == "hnsw":
        needed = rows * (4 * dim + GRAPH_BYTES)
    else:
        lists, vector = int(options.removeprefix("lists=")), 4 * dim + 8
        samples = max(50 * lists, 10_000)
        needed = samples * vector + min(samples, rows) * 4 * lists + 4 * lists * (vector + lists)
    return math.ceil(1.05 * needed / 2**20) + 8


def _index_of(factory: str) -> tuple[str, str]:
    """The index method and its options, of a factory such as "hnsw,m=16,ef_construction=100"."""
    kind, _, options = factory.partition(",")
    return kind, options.replace(",", ", ")


open_collections = PgvectorCollections
