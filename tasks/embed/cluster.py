"""A standalone Spark cluster on this machine from the pip package: `python -m tasks.embed.cluster` runs it until Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from serving.contract.child_environment import CLOUD, child_environment
from tasks.errors import VitrineError
from tasks.settings import PROJECT, Settings

START_S = 90.0
PORT = 7077


@dataclass
class Cluster:
    """A running master and its workers."""

    url: str
    master: subprocess.Popen
    workers: list[subprocess.Popen] = field(default_factory=list)


@contextmanager
def running_cluster(
    folder: Path, port: int = PORT, workers: int = 2, cores: int = 1, memory: str = "1g", gpus: int = 0
) -> Iterator[Cluster]:
    """Starts a master on 127.0.0.1:`port` and `workers` registered workers; stops all at the end of the block.

    With `gpus` every worker offers so many, found by
    docker/gpu-discovery.sh. Logs lie in `folder`. Raises VitrineError when they are not up within 90 s, with where to look.
    """
    import pyspark

    home = Path(pyspark.__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    environment = child_environment(os.environ, CLOUD) | {
        "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(PROJECT),
        "SPARK_WORKER_DIR": str(folder / "work"), "SPARK_LOCAL_DIRS": str(folder / "scratch"),
    }  # fmt: skip
    if gpus:
        script = PROJECT / "docker" / "gpu-discovery.sh"
        offer = f"-Dspark.worker.resource.gpu.amount={gpus} -Dspark.worker.resource.gpu.discoveryScript={script}"
        environment["SPARK_WORKER_OPTS"] = " ".join(o for o in (os.environ.get("SPARK_WORKER_OPTS", ""), offer) if o)
    started: list[subprocess.Popen] = []

    def start(name: str, *arguments: str) -> subprocess.Popen:
        with (folder / f"{name}.log").open("wb") as log:
            command = [str(home / "bin" / "spark-class"), *arguments]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    try:
        listen = ("--host", "127.0.0.1", "--webui-port", "0")
        master = start("master", "org.apache.spark.deploy.master.Master", *listen, "--port", str(port))
        url = f"spark://127.0.0.1:{port}"
        _wait(folder / "master.log", "I have been elected leader", master)
        cluster = Cluster(url, master)
        for number in range(workers):
            size = ("--cores", str(cores), "--memory", memory)
            cluster.workers.append(start(f"worker-{number}", "org.apache.spark.deploy.worker.Worker", *listen, *size, url))
        for number, worker in enumerate(cluster.workers):
            _wait(folder / f"worker-{number}.log", "Successfully registered with master", worker)
        yield cluster
    finally:
        for process in reversed(started):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            process.wait(timeout=30)


def _wait(log: Path, sentence: str, process: subprocess.Popen) -> None:
    limit = time.monotonic() + START_S
    while time.monotonic() < limit and process.poll() is None:
        if sentence in log.read_text(errors="replace"):
            return
        time.sleep(0.1)
    raise VitrineError(f"Spark's {log.stem} did not start; see {log}")


def main() -> None:
    """Runs a master and two workers until Ctrl-C."""
    with running_cluster(Settings.load().home / "spark-cluster") as cluster:
        print(
            f"Spark cluster with {len(cluster.workers)} workers: VITRINE_SPARK_MASTER={cluster.url}   (Ctrl-C stops it)",
            flush=True,
        )
        try:
            cluster.master.wait()
        except KeyboardInterrupt:
            print("stopping the cluster", flush=True)


if __name__ == "__main__":
    main()
