"""Airflow with CeleryExecutor as a platform team runs it: PostgreSQL, Redis, S3, and workers that share no file system.

Each worker lives in a mount namespace of its own: its temporary folder, its home and its Airflow's are on a disk that appears and
goes with it, everything of the stack is hidden, and the project's folder is read-only. It has a host name of its own as well.
"""

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from adbc_driver_postgresql import dbapi

from tasks import storage
from tasks.catalog.changes.outbox import Outbox
from tasks.catalog.load import load_folder
from tasks.demo.airflow import Airflow
from tasks.demo.services import airflow_service, mlflow_service, serving_service
from tasks.demo.supervisor import Service, Supervisor
from tasks.registry import Registry
from tasks.settings import PROJECT, Settings
from tests import running
from tests.airflow_server import airflow
from tests.catalogs import small_catalog
from tests.servers import free_port, postgres_databases, redis_server, s3_server

PRODUCTS = 24
SECRET = "not-for-logs"
"""Passwords of the test's Redis and databases hold it."""
OWN_DISK = """
mount -t tmpfs tmpfs "$1"; mount -t tmpfs tmpfs "$2"; mount -t tmpfs tmpfs /dev/shm
mount --bind "$3" "$3"; mount -o remount,bind,ro "$3"
mkdir -p "$2/$4"; hostname "$4"; echo "127.0.0.1 localhost $4" >"$2/$4/hosts"; mount --bind "$2/$4/hosts" /etc/hosts
shift 4; exec "$@"
"""
"""Runs a command with "$1" (the stack's folder), "$2" (temporary files) and shared memory empty and its own, "$3" read-only."""


class Metrics:
    """A StatsD server: it keeps the names of the metrics that arrive."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.socket.recv(65536):
                self.names |= {line.partition(":")[0] for line in data.decode(errors="replace").splitlines()}


def namespaces() -> tuple[str, ...]:
    """The command that gives a process its own mounts and host name; () where this machine does not let us."""
    root = () if os.geteuid() == 0 else ("--map-root-user",)
    return ("unshare", *root, "--mount", "--uts") if shutil.which("unshare") else ()


@dataclass
class CeleryStack:
    """Everything but the workers runs. `environment` is Airflow's, the same on every machine but for the folders."""

    settings: Settings
    environment: dict[str, str]
    supervisor: Supervisor
    airflow: Airflow
    registry: Registry
    metrics: "Metrics"

    def start_worker(self, name: str) -> None:
        """A Celery worker that takes one task at a time, on a machine of its own as far as it can tell."""
        own = {"HOME": "", "AIRFLOW_HOME": "airflow", "VITRINE_HOME": "vitrine"}
        folders = {k: f"{tempfile.gettempdir()}/{name}/{v}" for k, v in own.items()}
        environment = self.environment | folders | {"AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port())}
        environment["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] = f"{folders['AIRFLOW_HOME']}/logs"
        shown = (str(self.settings.home), tempfile.gettempdir(), str(PROJECT), name)
        celery = (sys.executable, "-m", "airflow", "celery", "worker", "--concurrency", "1", "--celery-hostname", name)
        command = (*namespaces(), "sh", "-ec", OWN_DISK, "sh", *shown, *celery)
        self.supervisor.start(Service(name, command, environment, f"http://127.0.0.1:{free_port()}"))
        running.until(lambda: self._is_ready(name), f"{name} is ready", 240)

    def _is_ready(self, name: str) -> bool:
        log = self.supervisor.log_tail(name, 1000)
        assert self.supervisor.children[name].poll() is None, log[-3000:]
        return f"{name} ready." in log

    def disk(self, name: str) -> Path:
        """A worker's own folder, seen from here."""
        return Path(f"/proc/{self.supervisor.children[name].pid}/root{tempfile.gettempdir()}/{name}")

    def handed_over(self) -> list[bytes]:
        """Everything that one task can have read of another: what is in S3 but for logs, and what Airflow passes on."""
        objects = [uri for uri in storage.list_files("s3://shop", recursive=True) if not uri.startswith("s3://shop/logs/")]
        address = self.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
        with dbapi.connect(address) as database, database.cursor() as cursor:
            cursor.execute("SELECT value::text FROM xcom")
            passed = [str(value).encode() for (value,) in cursor.fetchall()]
        return [storage.read_bytes(uri) for uri in objects] + passed

    def kill_worker(self, name: str) -> None:
        """SIGKILL to all of a worker's processes; its disk goes with them."""
        worker = self.supervisor.children[name]
        family = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        worker.wait(20)
        psutil.wait_procs(family, timeout=20)
        self.supervisor.stop(name)

    def finish(self, dag: str, **conf: object) -> tuple[str, dict[str, str], set[str]]:
        """Starts a DAG and waits for its end; its run id, the states of its tasks, and the machines that they ran on."""
        run_id = self.airflow.trigger(dag, dict(conf))
        self.wait(dag, run_id)
        states, machines = self.done(dag, run_id)
        for task in (name for name, state in states.items() if state == "failed"):
            print(f"{dag}.{task}:\n{self.airflow.log(dag, run_id, task)[-4000:]}")
        return run_id, states, machines

    def wait(self, dag: str, run_id: str) -> None:
        running.until(lambda: self.airflow.run(dag, run_id)["state"] in ("success", "failed"), f"{dag} {run_id} ends", 2400)

    def done(self, dag: str, run_id: str) -> tuple[dict[str, str], set[str]]:
        """The states of a run's tasks, and the host names of those that ran."""
        tasks = self.airflow.call("GET", f"/dags/{dag}/dagRuns/{run_id}/taskInstances", params={"limit": 200})["task_instances"]
        return {t["task_id"]: t["state"] for t in tasks}, {t["hostname"] for t in tasks if t["hostname"]}


@contextmanager
def celery_stack(folder: Path) -> Iterator[CeleryStack]:
    """Starts it; its catalogue is in PostgreSQL with its pictures in S3, and there is no encoder yet."""
    with ExitStack() as stack:
        endpoint = stack.enter_context(s3_server())
        aws = {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        for name, value in aws.items():
            stack.enter_context(pytest_environment(name, value))
        databases = stack.enter_context(postgres_databases(("airflow", "mlflow", "shop"), SECRET)).uris
        broker = stack.enter_context(redis_server(folder, SECRET))
        urls = [f"http://127.0.0.1:{free_port()}" for _ in range(3)]
        settings = replace(
            Settings(), home=folder, store="s3://shop/store", mlflow_uri=urls[0], airflow_url=urls[1], serving_urls=(urls[2],),
            catalog=f"{databases['shop']}?image_root=s3://shop/pictures", airflow_password="admin-for-a-test", admin_token=SECRET,
            encoder_preset="tiny", bake_s=1.0, p99_ms=5000.0,
        )  # fmt: skip
        fill_shop(settings, small_catalog(folder / "shop", PRODUCTS))
        supervisor = Supervisor(folder)
        metrics = Metrics()
        stack.callback(metrics.socket.close)
        tables = {name: uri.replace("postgresql://", "postgresql+psycopg2://") for name, uri in databases.items()}
        environment = airflow_environment(settings, tables["airflow"], broker) | aws
        environment |= {
            "OMP_WAIT_POLICY": "PASSIVE",
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_PORT": str(metrics.port),
        }
        tracking = mlflow_on(mlflow_service(settings), tables["mlflow"])
        services = [replace(tracking, environment=tracking.environment | aws), serving_service(settings)]
        stack.callback(lambda: [supervisor.stop(name) for name in supervisor.running()])
        for service in services:
            supervisor.start(service)
        airflow(dict(os.environ) | environment, "airflow", "db", "migrate")
        parts = [airflow_part(name, environment, settings) for name in ("api-server", "scheduler", "dag-processor", "triggerer")]
        for service in parts:
            supervisor.start(service)
        for service in [*services, parts[0]]:
            supervisor.wait(service)
        client = Airflow(settings.airflow_url, settings.airflow_user, settings.airflow_password)
        stack.callback(client.client.close)
        yield CeleryStack(
            settings, environment, supervisor, client, Registry(settings.mlflow_uri, folder / "test-cache"), metrics
        )


@contextmanager
def pytest_environment(name: str, value: str) -> Iterator[None]:
    """A variable of this process, for the test's own look into the store."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def fill_shop(settings: Settings, shop: Path) -> None:
    """The catalogue's tables and change queue in PostgreSQL, its pictures in S3."""
    load_folder(shop, settings.catalog)
    for path in sorted(shop.rglob("*.jpg")):
        storage.put_file(path, f"s3://shop/pictures/{path.relative_to(shop)}")
    source = Outbox.open(settings.catalog, existing=True)
    source.make_tables()
    source.close()


def airflow_environment(settings: Settings, database: str, broker: str) -> dict[str, str]:
    """What every part of Airflow has: one database, one broker, one store of logs."""
    environment = airflow_service(settings).environment | {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__CELERY__BROKER_URL": broker,
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database}",
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "691200",
        "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
        "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": "s3://shop/logs",
        "AIRFLOW__LOGGING__REMOTE_LOG_CONN_ID": "logs",
        "AIRFLOW_CONN_LOGS": '{"conn_type": "aws"}',
    }
    del environment["VITRINE_PROGRESS_DIR"]  # the terminal's of `make demo`, on the same machine
    return environment


def mlflow_on(service: Service, database: str) -> Service:
    """The same server with its tables in PostgreSQL and its artifacts in S3."""
    changed = {"--backend-store-uri": database, "--registry-store-uri": database, "--artifacts-destination": "s3://shop/mlflow"}
    command = list(service.command)
    for option, value in changed.items():
        command[command.index(option) + 1] = value
    return replace(service, command=tuple(command))


def airflow_part(name: str, environment: dict[str, str], settings: Settings) -> Service:
    command = (sys.executable, "-m", "airflow", name)
    health = f"{settings.airflow_url}/api/v2/monitor/health" if name == "api-server" else f"http://127.0.0.1:{free_port()}"
    return Service(name, command, environment, health)
