"""A runtime that never comes back, for a child process that is to be ended."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from serving.contract.runtimes import Format, Session


@dataclass(frozen=True)
class Hanging:
    """Its sessions take a minute to open."""

    name: str = "hanging"
    format: ClassVar[Format] = "onnx"

    def open(self, path: Path, precision: str, threads: int, fingerprint: str = "") -> Session:
        time.sleep(600)
        raise AssertionError("it was not ended")
