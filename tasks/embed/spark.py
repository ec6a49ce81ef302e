"""The Spark session, and one job shape: a list of chunks, each processed by any free Python worker."""

import os
import shutil
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa

from serving.contract.child_environment import CLOUD, secrets_withheld
from tasks.errors import VitrineError
from tasks.settings import PROJECT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TASK_RETRIES = 4
EXECUTOR_GPU = {
    "spark.executor.resource.gpu.amount": "1",
    "spark.executor.resource.gpu.discoveryScript": str(PROJECT / "docker" / "gpu-discovery.sh"),
}
PINNED = "VITRINE_PINNED_GPU"
LOOPBACK = "127.0.0.1"
SENT = "encoder"
"""What a folder that was sent is called on executors; a session sends one."""
PANDAS_WARNING = "PySpark does not yet fully support pandas"
"""What pyspark 4.3 says of pandas 3 wherever Arrow is used; no pandas object is made here, so it is not shown."""
LOGGING = """\
rootLogger.level = error
logger.gateway.name = org.apache.spark.api.python.PythonGatewayServer
logger.gateway.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{yy/MM/dd HH:mm:ss} %p %c{1}: %m%n%ex
"""


@contextmanager
def session(master: str, work: Path, options: dict[str, str] | None = None, gpus: float = 0.0) -> Iterator["SparkSession"]:
    """A Spark session on `master` (local[n], spark://…) with scratch files below `work`; stopped at the end of the block.

    The driver listens on the address from which this machine reaches the master; executors connect to it there, unless `options`
    give a spark.driver.host. With `gpus` every executor of a cluster holds one GPU, found by docker/gpu-discovery.sh on its machine.
    """
    from pyspark.sql import SparkSession

    address = address_towards(master)
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ.setdefault("SPARK_LOCAL_IP", address)
    path = os.environ.get("PYTHONPATH", "")
    if str(PROJECT) not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(PROJECT), path) if p)
    (work / "spark").mkdir(parents=True, exist_ok=True)
    logging = work / "spark" / "log4j2.properties"
    logging.write_text(LOGGING)
    threads = master[6:-1] if master.startswith("local[") else ""
    builder = SparkSession.builder.master(f"local[{threads},{TASK_RETRIES}]" if threads else master).appName("vitrine")
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": address,
        "spark.driver.bindAddress": address,
        "spark.driver.memory": "1g",
        # The JVM only hands out chunks: the quick compiler alone starts it sooner.
        "spark.driver.extraJavaOptions": f"-XX:TieredStopAtLevel=1 -Dlog4j2.configurationFile={logging.absolute().as_uri()}",
        "spark.local.dir": str(work / "spark"),
        "spark.sql.warehouse.dir": str(work / "spark" / "warehouse"),
        "spark.sql.execution.arrow.maxRecordsPerBatch": "1",
        "spark.task.maxFailures": str(TASK_RETRIES),
        "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
        "spark.executorEnv.PYTHONWARNINGS": f"ignore:{PANDAS_WARNING}:FutureWarning",
        "spark.python.worker.reuse": "true",
        **(EXECUTOR_GPU if gpus and not threads else {}),
        **(options or {}),
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    # The JVM and its Python workers need no secrets but those of the store.
    with warnings.catch_warnings(), secrets_withheld(CLOUD):
        warnings.filterwarnings("ignore", PANDAS_WARNING, FutureWarning)
        spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark
    finally:
        spark.stop()


def address_towards(master: str) -> str:
    """The address of this machine from which it reaches `master`; 127.0.0.1 for local[n] and a master on this machine.

    Nothing is sent: connecting a UDP socket asks the routing table alone. Raises VitrineError for a master that has no address.
    """
    if master.startswith("local"):
        return LOOPBACK
    parts = urlsplit(master.removeprefix("k8s://").partition(",")[0])
    try:
        family, _, _, _, where = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise VitrineError(f"VITRINE_SPARK_MASTER={master!r}: this machine does not reach {parts.hostname} ({error})") from None


def send_folder(spark: "SparkSession", folder: Path, work: Path) -> str:
    """Sends a folder of files to the executors; gives the name by which `sent_folder` finds it on each of them.

    Spark unpacks it below each executor's own scratch and deletes it with the session. Workers of local[n] read it where it is.
    """
    if str(spark.sparkContext.master).startswith("local"):
        return str(folder.absolute())
    archive = shutil.make_archive(str(work / "spark" / "sent"), "zip", folder)
    spark.sparkContext.addArchive(f"{archive}#{SENT}")
    return SENT


def sent_folder(name: str) -> Path:
    """The folder that `send_folder` named, on this machine; a path is the folder itself."""
    if os.path.isabs(name):
        return Path(name)
    from pyspark import SparkFiles

    return Path(SparkFiles.get(name))


def for_each_chunk(spark: "SparkSession", chunks: list[str], work: Callable[[str], None], gpus: float = 0.0) -> int:
    """Runs `work(chunk)` for each uri as one Spark task each, so a lost worker costs one chunk. Returns how many ran.

    With `gpus` each task of this stage, and of no other, asks a cluster for that share of a GPU and sees only the one it got.
    """
    if not chunks:
        return 0

    profile = _task_profile(gpus) if gpus and not str(spark.sparkContext.master).startswith("local") else None

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        pin_gpu()
        for batch in batches:
            for number in batch.column(0).to_pylist():
                work(chunks[number])
            yield batch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", PANDAS_WARNING, FutureWarning)
        return spark.range(0, len(chunks), 1, len(chunks)).mapInArrow(run, "id long", profile=profile).count()


def _task_profile(gpus: float) -> Any:
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    return ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource("gpu", gpus)).build


def pin_gpu() -> None:
    """Restricts this Python worker to the GPU that Spark assigned to its task, if any.

    CUDA reads CUDA_VISIBLE_DEVICES once, when the encoder's session is opened, so a worker keeps its GPU: executors hold one each.
    Raises VitrineError when a reused worker is given another.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    given = context.resources().get("gpu") if context else None
    if given is None:
        return
    mine = ",".join(given.addresses)
    if os.environ.setdefault(PINNED, mine) != mine:
        raise VitrineError(
            f"this worker runs on GPU {os.environ[PINNED]} and was given {mine}: let every executor hold one GPU "
            "(spark.executor.resource.gpu.amount=1)"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = mine
