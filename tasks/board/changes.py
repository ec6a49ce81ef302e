"""Catalogue changes that shoppers do not see: pending ones, dead letters, and quarantined products."""

import csv
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

from serving.contract.addresses import error_line
from tasks import storage
from tasks.board.quarantine import from_lists, latest_list, quarantine_lines
from tasks.catalog.changes.drain import truncate
from tasks.catalog.changes.source import ChangeSource, CountUnavailable
from tasks.errors import VitrineError
from tasks.registry import INDEX_MODEL, ORIGIN_URL, Registry

SHOWN = 20
VERSIONS = 2000
"""How far back the runs that quarantined a product are looked for."""
FRESH_S = 10.0
"""The queue is looked at again after this time, however many people have the board open."""
PATIENCE_S = 10.0
"""How long a page waits for the queue or for MLflow."""
SENTENCE = 400
LISTED = 100_000
"""As many rows a downloaded list has at most."""
REQUEUE = "vitrine changes requeue"


class ChangesBoard:
    """Reads the queue that VITRINE_CHANGES names and the quarantine of the newest index version. Thread-safe."""

    def __init__(
        self,
        open_queue: Callable[[], AbstractContextManager[ChangeSource]],
        open_registry: Callable[[], Registry],
        store_uri: str,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.open_queue, self.open_registry, self.store_uri = open_queue, open_registry, store_uri
        self.queue = SingleFlight(lambda: read_queue(open_queue), "the queue", patience_s)
        self.quarantine = SingleFlight(lambda: read_quarantine(open_registry(), store_uri), "the quarantine", patience_s)

    def quarantine_csv(self) -> str:
        """All quarantined products of the newest index version. Raises VitrineError when they cannot be read."""
        with _readable("the quarantine"):
            found = read_quarantine(self.open_registry(), self.store_uri, LISTED)
        return as_csv(("product_id", "image", "reason", "detail", "run"), found["products"])

    def dead_letters_csv(self) -> str:
        """All dead letters with their messages. Raises VitrineError when the queue cannot be read."""
        with _readable("the dead letters"), self.open_queue() as source:
            rows = [
                asdict(letter) | {"product_id": letter.product_id, "at": _iso(letter.at)}
                for letter in source.dead_letters(LISTED)
            ]
        return as_csv(("id", "at", "product_id", "reason", "text"), rows)

    def read(self) -> dict[str, Any]:
        """`queue` and `quarantine` as JSON; a sentence `problem` replaces the figures of a part that could not be read."""
        parts = (("queue", self.queue.start()), ("quarantine", self.quarantine.start()))
        return {name: look() for name, look in parts}


class SingleFlight:
    """Runs a slow read at most once at a time and shares its result among concurrent callers, with a short cache (FRESH_S)."""

    def __init__(self, work: Callable[[], dict[str, Any]], what: str, patience_s: float) -> None:
        self.work, self.what, self.patience_s = work, what, patience_s
        self.pool = ThreadPoolExecutor(1)
        self.lock = threading.Lock()
        self.held: Future[dict[str, Any]] | None = None
        self.done_at = 0.0

    def start(self) -> Callable[[], dict[str, Any]]:
        """Starts the read unless a fresh result or a running one exists; the returned function gives it, or `{"problem": …}`."""
        with self.lock:
            if self.held is None or (self.held.done() and time.monotonic() - self.done_at > FRESH_S):
                self.held = self.pool.submit(self._timed)
            held = self.held

        def result() -> dict[str, Any]:
            try:
                return held.result(self.patience_s)
            except TimeoutError:
                return {"problem": f"{self.what} did not answer within {self.patience_s:g} s"}

        return result

    def _timed(self) -> dict[str, Any]:
        try:
            return self.work()
        except Exception as error:  # whatever is away or refuses: the board says so and shows the rest
            return {"problem": f"{self.what} cannot be read: {public_message(error)}"}
        finally:
            self.done_at = time.monotonic()


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Whatever is away or refuses becomes one sentence."""
    try:
        yield
    except Exception as error:
        raise VitrineError(f"{what} cannot be read: {public_message(error)}") from error


def read_queue(open_queue: Callable[[], AbstractContextManager[ChangeSource]]) -> dict[str, Any]:
    """Number and age of the pending changes, and the newest dead letters. `…_note` says what a queue cannot count."""
    with open_queue() as source:
        waiting = source.count_waiting()
        oldest, note = None, ""
        try:
            oldest = source.oldest_at()
        except CountUnavailable as error:
            note = str(error)
        found = {"name": source.name, "waiting": waiting, "oldest": _iso(oldest), "oldest_note": note, "problem": ""}
        return found | _dead_letters(source)


def _dead_letters(source: ChangeSource) -> dict[str, Any]:
    """Count and newest of the dead letters. Failing to read them leaves the rest of the queue's figures intact."""
    try:
        count, letters = source.count_dead_letters(), source.dead_letters(SHOWN)
    except Exception as error:
        return {
            "dead": None,
            "dead_note": f"the dead letters cannot be read: {public_message(error)}",
            "letters": [],
            "requeue": REQUEUE,
        }
    lines = [
        {"id": x.id, "product_id": truncate(x.product_id, 80), "reason": truncate(x.reason, SENTENCE), "at": _iso(x.at)}
        for x in letters
    ]
    return {"dead": count, "dead_note": "", "letters": lines, "requeue": REQUEUE}


def read_quarantine(registry: Registry, store_uri: str, limit: int = SHOWN) -> dict[str, Any]:
    """Up to `limit` quarantined products of the newest index version; without any version (`version` ""), those of the last run."""
    versions = registry.versions(INDEX_MODEL, VERSIONS)
    if versions:
        manifest = registry.manifest_of(versions[0])
        count, lines = manifest.counts.quarantined, quarantine_lines(registry, versions[0], manifest, versions, limit)
    else:
        last = latest_list(store_uri)
        snapshot = storage.join(store_uri, "snapshots", last[0].run) if last else ""
        count, lines = len(last), from_lists(last[:limit], snapshot)
    urls = {v.tags.get("run_key", ""): v.tags.get(ORIGIN_URL, "") for v in versions}
    return {
        "version": versions[0].version if versions else "", "aliases": versions[0].aliases if versions else (), "count": count,
        "products": [{n: truncate(t, SENTENCE) for n, t in asdict(x).items()} | {"url": urls.get(x.run, "")} for x in lines],
        "problem": "",
    }  # fmt: skip


def as_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header. A cell that a spreadsheet would take for a formula gets an apostrophe before it."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        cells = [str(row[name]) for name in columns]
        writer.writerow([f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell for cell in cells])
    return text.getvalue()


def public_message(error: Exception) -> str:
    """The first line of an error with secrets in addresses masked, safe to show to all users."""
    return truncate(error_line(error, 10 * SENTENCE), SENTENCE)


def _iso(at: datetime | None) -> str:
    return at.isoformat(timespec="seconds") if at else ""
