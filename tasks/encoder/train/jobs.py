"""Runs a training in this process, or by torchrun with one process per GPU; rank 0 reports metrics line by line.

torchrun --nproc-per-node=8 -m tasks.encoder.train.jobs job.json     # by hand, on a machine of one's own
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Literal

from serving.contract.child_environment import CLOUD, child_environment
from serving.contract.files import FrozenModel
from tasks.encoder.config import EncoderConfig
from tasks.encoder.data.pixels import Decoding
from tasks.encoder.train.loop import MetricLog, no_log
from tasks.encoder.train.student import distil_student
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.tower_record import TrainedTower
from tasks.errors import TrainingError, VitrineError
from tasks.progress import FOLDER_VARIABLE
from tasks.settings import PROJECT

WITH_PARENT = "--with-parent"

log = logging.getLogger(__name__)


class Job(FrozenModel):
    """What to train, on which data, and where to write; `config` is an EncoderConfig as a dict.

    `checkpoints`: a folder of the store, for another worker to go on from; empty: below `work`.
    """

    tower: Literal["teacher", "student"]
    snapshot_uri: str
    config: dict[str, Any]
    work: str
    teacher: TrainedTower | None = None
    checkpoints: str = ""
    cache_bytes: int = Decoding.cache_bytes
    workers: int = Decoding.workers
    max_unreadable: float = Decoding.max_unreadable
    max_untrainable: float = Decoding.max_untrainable


def train(job: Job, metrics: MetricLog, processes: int = 0) -> TrainedTower:
    """Trains in this process, or by torchrun in `processes` processes (0: one per GPU).

    The loss is that of one process with the same recipe: the recipe's batch is the whole of a step, which the processes share.
    Raises TrainingError like `train_teacher`; RuntimeError when a process died, after which the job goes on where it was.
    """
    import torch

    count = processes or torch.cuda.device_count()
    if count <= 1:
        return _train_here(job, metrics)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(job.model_dump_json())
        _run_processes(path, count, metrics)
    return _train_here(job, no_log)  # finished: this only reads its record


def _train_here(job: Job, metrics: MetricLog) -> TrainedTower:
    config, work = EncoderConfig.from_dict(job.config), Path(job.work)
    decoding = Decoding(job.cache_bytes, job.workers, job.max_unreadable, job.max_untrainable)
    if job.tower == "teacher":
        return train_teacher(job.snapshot_uri, config, work, metrics, decoding, job.checkpoints)
    assert job.teacher is not None, "a student is distilled from a teacher"
    return distil_student(job.snapshot_uri, job.teacher, config, work, metrics, decoding, job.checkpoints)


def _run_processes(path: Path, count: int, metrics: MetricLog) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))} | child_environment(os.environ, CLOUD)
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log.info("training with %d processes", count)
    process = subprocess.Popen(
        [*command, "-m", "tasks.encoder.train.jobs", str(path), WITH_PARENT],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    failure = ""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            told = _parse_metric(line)
            if "metric" in told:
                metrics(*told["metric"])
            elif "error" in told:
                failure = failure or told["error"]
            else:
                log.info("%s", line.rstrip())
    finally:
        process.stdin.close()  # the processes end with it, if they have not yet
        process.stdout.close()
        status = process.wait()
    if failure:
        raise TrainingError(failure)
    if status:
        raise RuntimeError(f"a training process ended with status {status}; its log is above, and a new attempt resumes")


def _parse_metric(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {}


def main(arguments: list[str]) -> int:
    """Entry point of one torchrun process."""
    import torch
    from torch import distributed

    job = Job.model_validate_json(Path(arguments[0]).read_bytes())
    first = int(os.environ["RANK"]) == 0
    if WITH_PARENT in arguments:
        threading.Thread(target=_leave_with_parent, daemon=True).start()
    if not first:
        os.environ.pop(FOLDER_VARIABLE, None)  # one progress bar is enough
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        _train_here(job, _send_metric if first else no_log)
    except VitrineError as error:
        _write_line({"error": str(error)})
        return 1
    finally:
        distributed.destroy_process_group()
    return 0


def _send_metric(name: str, value: float, step: int) -> None:
    _write_line({"metric": [name, value, step]})


def _write_line(told: dict[str, Any]) -> None:
    """One line in one write: what several processes say at once stays apart."""
    os.write(sys.stdout.fileno(), f"{json.dumps(told)}\n".encode())


def _leave_with_parent() -> None:
    """Exits when the starting process is gone: its end of the pipe closes."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
