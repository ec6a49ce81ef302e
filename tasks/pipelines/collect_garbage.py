"""The steps of collect_garbage."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tasks.pipelines.common import registry, scratch, settings
from tasks.records import Record
from tasks.registry import Registry
from tasks.release.promotion.lease import hold_lease
from tasks.release.retention.garbage import GarbagePlan, collect, plan_garbage
from tasks.release.retention.policy import Retention
from tasks.settings import Settings

log = logging.getLogger(__name__)

EXPERIMENT = "garbage"
PATIENCE_S = 1800.0
"""How long a collection waits for a promotion to end."""


@dataclass(frozen=True)
class Garbage(Record):
    """Number of items and bytes that a collection would delete, or deleted."""

    things: int
    bytes: int
    summary: str


def plan(run_key: str, versions: int = 0) -> Garbage:
    """Dry run: logs what a collection would delete and records it in MLflow. `versions` 0: the setting's value."""
    chosen = settings()
    found = plan_garbage(registry(chosen), chosen.store_uri, retention_of(chosen, versions))
    for item in found.items:
        log.info("%s %s (%d bytes): %s", item.kind, item.name, item.bytes, item.reason)
    log.info("%s", found.summary)
    _record(run_key, "plan.json", asdict(found))
    return Garbage(len(found.items), found.bytes, found.summary)


def delete(run_key: str, versions: int = 0) -> Garbage:
    """Deletes the current garbage, while no promotion runs."""
    chosen = settings()
    done = collect_with_lease(chosen, registry(chosen), f"collect_garbage, {run_key}", versions)
    _record(run_key, "collected.json", asdict(done))
    return Garbage(len(done.items), done.bytes, done.summary.replace("to collect", "collected"))


def collect_with_lease(chosen: Settings, models: Registry, holder: str, versions: int = 0) -> GarbagePlan:
    """Deletes garbage while `holder` holds the promotion lease."""

    @contextmanager
    def alone() -> Iterator[Callable[[], None]]:
        with hold_lease(models, holder, patience_s=PATIENCE_S) as lease:
            yield lease.check

    return collect(models, chosen.store_uri, retention_of(chosen, versions), alone)


def retention_of(chosen: Settings, versions: int = 0) -> Retention:
    return Retention(versions=versions or chosen.keep_versions)


def _record(run_key: str, name: str, content: dict[str, Any]) -> None:
    with registry().run(EXPERIMENT, run_key, f"garbage {run_key}") as run, scratch(run_key, "garbage") as folder:
        (folder / name).write_text(json.dumps(content, indent=1))
        run.artifact(folder / name)
        run.metrics({"things": len(content["items"]), "bytes": sum(item["bytes"] for item in content["items"])})
