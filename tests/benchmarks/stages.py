"""The stages of a long benchmark: each is timed once and kept, so that a run that was killed goes on where it was."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.contract.files import atomic_write


class Stages:
    """Results of named stages in a JSON file: what a stage gave (JSON values), its seconds, and the process's peak memory."""

    def __init__(self, file: Path, until: str = "") -> None:
        self.file, self.until = file, until
        self.done: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gave: now, or in the run that did this stage."""
        if name not in self.done:
            began = time.perf_counter()
            result = work()
            took = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            self.done[name] = {"seconds": took, "peak_gib": peak, "result": result}
            with atomic_write(self.file) as path:
                path.write_text(json.dumps(self.done))
            print(f"{name:40} {took:9.1f} s   peak {peak:5.2f} GiB", flush=True)
            if name == self.until:
                raise SystemExit(0)
        return self.done[name]["result"]

    def seconds(self, prefix: str) -> float:
        """Seconds of all stages whose name starts so."""
        return sum(s["seconds"] for n, s in self.done.items() if n.startswith(prefix))

    def peak_gib(self) -> float:
        """The most memory that any stage's process held, GiB."""
        return max((s["peak_gib"] for s in self.done.values()), default=0.0)
