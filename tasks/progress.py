"""Progress of long steps: occasional log lines, and a small file from which `make demo` draws a progress bar."""

import json
import logging
import os
import time
from pathlib import Path
from types import TracebackType

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "VITRINE_PROGRESS_DIR"
FILE_EVERY_S = 0.5
LOG_EVERY_S = 10.0


class Progress:
    """Counts up to `total`. A context manager; `add` is cheap enough to call for every batch. `before` were done by an earlier attempt.

    Writes <VITRINE_PROGRESS_DIR>/<name>.json ({name, done, total, unit, started, updated, note}) when that variable is set,
    and removes it at the end.
    """

    def __init__(self, name: str, total: int, unit: str, before: int = 0) -> None:
        self.name, self.total, self.unit, self.before = name, total, unit, before
        self.done, self.note = before, ""
        self.started = time.time()
        folder = os.environ.get(FOLDER_VARIABLE)
        self.file = Path(folder) / f"{name}.json" if folder else None
        self.last_file = self.last_log = 0.0

    def __enter__(self) -> "Progress":
        self._write("")
        self.last_log = time.time()
        return self

    def add(self, count: int = 1, note: str = "") -> None:
        self.set(self.done + count, note)

    def set(self, done: int, note: str = "") -> None:
        self.done, self.note = done, note
        now = time.time()
        if now - self.last_file >= FILE_EVERY_S:
            self._write(note)
        if now - self.last_log >= LOG_EVERY_S:
            self.last_log = now
            log.info("%s", self.line(note))

    def line(self, note: str = "") -> str:
        elapsed = max(time.time() - self.started, 1e-9)
        rate = (self.done - self.before) / elapsed
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.total > self.done else ""
        shown = f"{rate:.1f}" if 0 < rate < 9.95 else f"{rate:.0f}"
        return f"{self.name}: {self.done}/{self.total} {self.unit}, {shown} {self.unit}/s{left}{', ' + note if note else ''}"

    def _write(self, note: str) -> None:
        self.last_file = time.time()
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "name": self.name,
            "done": self.done,
            "before": self.before,
            "total": self.total,
            "unit": self.unit,
            "note": note,
        }
        temporary = self.file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(record | {"started": self.started, "updated": self.last_file}))
        temporary.replace(self.file)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        log.info("%s", self.line(self.note))
        if self.file is not None:
            self.file.unlink(missing_ok=True)
