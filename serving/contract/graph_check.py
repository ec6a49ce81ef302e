"""Opens an encoder graph in a child process first: a runtime's C++ code can crash or hang, and then only the child dies.

A session that opens and runs once in a child, on the same machine with the same options, does so in this process too.
"""

import math
import os
import pickle
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.contract.addresses import error_line
from serving.contract.child_environment import child_environment
from serving.contract.files import ContractError
from serving.contract.runtimes import Runtime

REFUSED = 3
"""Exit status of a child whose runtime rejected the graph; the reason is the last line it printed."""
COMMAND = (sys.executable, "-m", "serving.contract.graph_check")


class Check(Protocol):
    """Raises ContractError unless the graph of a variant opens and runs once; see `GraphCheck`."""

    def __call__(self, name: str, path: Path, runtime: Runtime, inputs: np.ndarray) -> None: ...


@dataclass(frozen=True)
class GraphCheck:
    """Opens a graph and runs it once, in a child process that is killed after `seconds`.

    `setting` names the time limit in the message. `command` starts the child, which reads its request from standard input.
    """

    seconds: float = 300.0
    setting: str = ""
    command: tuple[str, ...] = COMMAND

    def __call__(self, name: str, path: Path, runtime: Runtime, inputs: np.ndarray) -> None:
        """Checks the graph `path` of the variant `name` ("tower.variant") on a batch of `inputs`.

        Raises ContractError in one sentence naming tower, variant, runtime, and the signal or the limit that ended the child.
        """
        request = pickle.dumps((runtime, path.absolute(), name.partition(".")[2], inputs, self.seconds))
        environ = child_environment(os.environ) | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        what = f"{name} in {runtime.name}"
        try:
            ended = subprocess.run(self.command, input=request, capture_output=True, timeout=self.seconds, env=environ)
        except subprocess.TimeoutExpired:
            limit = f"{self.seconds:g} s" + (f" ({self.setting})" if self.setting else "")
            raise ContractError(
                f"{what}: the graph did not open and run once within {limit}; the child process was killed (SIGKILL)"
            ) from None
        if ended.returncode == REFUSED:
            raise ContractError(f"{what}: {_last_line(ended.stdout).removeprefix(f'{path.name}: ')}")
        if ended.returncode < 0:
            raise ContractError(f"{what}: the child process that opened the graph died of {_signal_name(-ended.returncode)}")
        if ended.returncode:
            why = _last_line(ended.stderr) or "it said nothing"
            raise ContractError(f"{what}: the child process that opened the graph ended with status {ended.returncode}: {why}")


IN_CHILD = GraphCheck()


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or [""])[-1]


def main() -> int:
    """Entry point of the child: opens the graph described on standard input and runs it once."""
    runtime, path, precision, inputs, seconds = pickle.loads(sys.stdin.buffer.read())
    signal.alarm(math.ceil(seconds) + 1)  # ends it where its parent is gone
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core file of gigabytes
    try:
        runtime.open(path, precision, 1)(inputs)
    except ContractError as error:
        print(error)
        return REFUSED
    except Exception as error:  # what a session raises while it runs is the runtime's own class
        print(f"it opens but does not run: {error_line(error)}")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
