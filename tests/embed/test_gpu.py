"""GPUs: what the discovery script finds, and that each task of a cluster sees the one it was given. nvidia-smi is played."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tasks.embed.cluster import running_cluster
from tasks.embed.job import EmbedConfig
from tasks.embed.spark import EXECUTOR_GPU, for_each_chunk, session
from tests.servers import free_port

SCRIPT = EXECUTOR_GPU["spark.executor.resource.gpu.discoveryScript"]


def play(folder: Path, lines: str, status: int = 0) -> Path:
    """An nvidia-smi that lists these devices."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = --query-gpu=index ] || exit 9\nprintf '{lines}'\nexit {status}\n")
    program.chmod(0o755)
    return folder


def found(environment: dict[str, str]) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run([SCRIPT], env=clean | environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("lines", "environment", "addresses"),
    [
        ("0\\n1\\n", {}, ["0", "1"]),
        ("0\\n", {}, ["0"]),
        ("", {}, []),
        ("0\\n1\\n2\\n", {"CUDA_VISIBLE_DEVICES": "2,0"}, ["2", "0"]),
        ("0\\n", {"CUDA_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_the_script_lists_the_devices_in_sparks_words(
    tmp_path: Path, lines: str, environment: dict[str, str], addresses: list[str]
) -> None:
    answer = found({"PATH": f"{play(tmp_path / 'bin', lines)}:{os.environ['PATH']}"} | environment)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {"name": "gpu", "addresses": addresses}


def test_a_driver_that_fails_is_not_a_machine_without_gpus(tmp_path: Path) -> None:
    assert found({"PATH": f"{play(tmp_path / 'bin', 'No devices', 9)}:{os.environ['PATH']}"}).returncode != 0


def test_a_gpu_takes_larger_batches() -> None:
    assert EmbedConfig().batch_rows == 32
    assert EmbedConfig(gpus=0.5).batch_rows == EmbedConfig(runtime="onnxruntime-cuda").batch_rows == 512
    assert EmbedConfig(gpus=1, batch=64).batch_rows == 64


@pytest.mark.slow
def test_each_task_of_the_stage_sees_the_gpu_it_was_given_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = play(tmp_path / "bin", "0\\n1\\n")
    monkeypatch.setattr("tasks.embed.cluster.START_S", 300.0)
    monkeypatch.setenv("PATH", f"{devices}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = tmp_path / "seen"
    seen.mkdir()

    def look(chunk: str) -> None:
        (seen / f"look-{chunk}-{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}").touch()

    def embed(chunk: str) -> None:
        (seen / f"embed-{chunk}-{os.environ['CUDA_VISIBLE_DEVICES']}-{os.getpid()}").touch()

    options = {"spark.executor.memory": "512m", "spark.executor.cores": "1"}
    with (
        running_cluster(tmp_path / "cluster", free_port(), workers=1, cores=2, memory="2g", gpus=2) as cluster,
        session(cluster.url, tmp_path / "work", options, gpus=1.0) as spark,
    ):
        assert for_each_chunk(spark, [str(n) for n in range(4)], look) == 4
        assert for_each_chunk(spark, [str(n) for n in range(8)], embed, gpus=1.0) == 8
    runs = [f.name.split("-") for f in seen.iterdir()]
    assert sorted(r[1] for r in runs if r[0] == "look") == ["0", "1", "2", "3"]
    given = [(r[2], r[3]) for r in runs if r[0] == "embed"]
    assert len(given) == 8
    assert {gpu for gpu, _ in given} <= {"0", "1"}
    assert len({worker for _, worker in given}) == len(set(given)), "a worker keeps its GPU"
