"""A graph that crashes or hangs its runtime ends a child process, and is one sentence that names it."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from serving.contract.files import ContractError
from serving.contract.graph_check import COMMAND, GraphCheck
from serving.contract.runtimes import ONNXRUNTIME, RUNTIMES
from tests.serving.contract.hanging import Hanging
from tests.tiny import tiny_encoder

PIXELS = np.zeros((2, 32, 32, 3), np.uint8)


def child(code: str) -> tuple[str, ...]:
    """What stands for a child whose runtime does this."""
    return (sys.executable, "-c", f"import os, signal, sys, time; sys.stdin.buffer.read(); {code}")


HANGS = child("time.sleep(600)")
CRASHES = child("os.kill(os.getpid(), signal.SIGSEGV)")
FATES = {
    "hangs": (HANGS, r"did not open and run once within 1 s \(VITRINE_GRAPH_OPEN_S\); the child process was killed \(SIGKILL\)"),
    "crashes": (CRASHES, "the child process that opened the graph died of SIGSEGV"),
    "aborts": (child("os.abort()"), "the child process that opened the graph died of SIGABRT"),
    "is out of memory": (
        child("os.kill(os.getpid(), signal.SIGKILL)"),
        "the child process that opened the graph died of SIGKILL",
    ),
    "fails": (
        child("sys.exit('no such library')"),
        "the child process that opened the graph ended with status 1: no such library",
    ),
    "fails silently": (child("os._exit(7)"), "the child process that opened the graph ended with status 7: it said nothing"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("encoder")
    tiny_encoder(place)
    return place


@pytest.mark.parametrize("fate", FATES)
def test_a_child_that_does_not_end_well_is_one_sentence(folder: Path, fate: str) -> None:
    command, sentence = FATES[fate]
    check = GraphCheck(1.0 if fate == "hangs" else 60.0, "VITRINE_GRAPH_OPEN_S", command)
    began = time.monotonic()
    with pytest.raises(ContractError, match=rf"^student.fp32 in onnxruntime: (the graph )?{sentence}$"):
        check("student.fp32", folder / "student.fp32.onnx", ONNXRUNTIME, PIXELS)
    assert time.monotonic() - began < 300


def test_a_graph_that_opens_and_runs_passes_from_any_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    GraphCheck()("student.fp32", Path("student.fp32.onnx"), ONNXRUNTIME, PIXELS)
    monkeypatch.chdir(tmp_path)
    GraphCheck()("student.fp32", folder / "student.fp32.onnx", ONNXRUNTIME, PIXELS)


def test_bytes_that_are_no_graph_and_a_run_that_fails_are_the_runtimes_own_sentence(folder: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "student.int8.onnx"
    garbage.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(
        ContractError, match=r"^student.int8 in onnxruntime: ONNX Runtime cannot load it: .*Protobuf parsing failed"
    ):
        GraphCheck()("student.int8", garbage, ONNXRUNTIME, PIXELS)
    with pytest.raises(ContractError, match=r"^student.fp32 in onnxruntime: it opens but does not run: .*invalid dimensions"):
        GraphCheck()("student.fp32", folder / "student.fp32.onnx", ONNXRUNTIME, PIXELS[:, :16])


def test_the_child_opens_the_graph_in_the_runtime_that_is_asked_for(folder: Path) -> None:
    cuda = RUNTIMES["onnxruntime-cuda"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("here it would open")
    with pytest.raises(
        ContractError, match=r"^student.fp32 in onnxruntime-cuda: .*has no CUDAExecutionProvider; install the extra"
    ):
        GraphCheck()("student.fp32", folder / "student.fp32.onnx", cuda, PIXELS)


def test_a_child_whose_parent_is_gone_ends_by_itself(folder: Path) -> None:
    """The child is started as a parent does, with a runtime that hangs, and nobody kills it."""
    request = pickle.dumps((Hanging(), folder / "student.fp32.onnx", "fp32", PIXELS, 0.5))
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert process.stdin is not None
    process.stdin.write(request)
    process.stdin.close()
    assert process.wait(120) == -signal.SIGALRM
