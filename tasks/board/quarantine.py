"""The quarantined products of an index version with their reasons, newest first."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow.compute as pc

from serving.contract.manifest import IndexManifest
from tasks import storage
from tasks.catalog.changes.ledger import QUARANTINED
from tasks.embed.quarantine import QuarantineEntry, read_quarantine, with_ids
from tasks.errors import VitrineError
from tasks.pipelines.drain_changes import ledger_of
from tasks.registry import Registry, Version
from tasks.release.ancestry import PARENT

RUNS = 200
"""As many runs' lists are looked through for a reason, the newest first."""


@dataclass(frozen=True)
class QuarantineLine:
    """One quarantined product. `reason` is a short code, `detail` a sentence, `run` the key of the run that found it.

    `product_id` is "" where only the key is known any more, `reason` and `run` where the run's list is no longer kept.
    """

    product_id: str
    image: str
    reason: str
    detail: str
    run: str


def quarantine_lines(
    registry: Registry, version: Version, manifest: IndexManifest, versions: Sequence[Version], limit: int
) -> list[QuarantineLine]:
    """Up to `limit` quarantined products of a version; its ancestors are looked up among `versions`.

    How many there are in all is `manifest.counts.quarantined`.
    """
    if not manifest.counts.quarantined:
        return []
    store = manifest.snapshot.uri.rsplit("/snapshots/", 1)[0]
    ledger = ledger_of(registry, manifest)
    order = [("received_at", "descending"), ("key", "ascending")]
    changed = ledger.filter(pc.equal(ledger["state"], QUARANTINED)).sort_by(order).slice(0, limit).to_pylist()
    reasons = _reasons(store, _runs(version, versions), {row["key"] for row in changed})
    lines = [
        _line(row["product_id"], json.loads(row["event"])["product"]["image_uri"], reasons.get(row["key"])) for row in changed
    ]
    room = limit - len(lines)
    if room > 0:
        since = set(ledger["key"].to_pylist())
        base = [row for row in read_quarantine(store, _base_runs(registry, manifest)) if row.key not in since][:room]
        lines += from_lists(base, manifest.snapshot.uri)
    return lines


def from_lists(rows: Sequence[QuarantineEntry], snapshot_uri: str) -> list[QuarantineLine]:
    """Lines from runs' quarantine lists; missing product ids are looked up in the snapshot."""
    unnamed = [{"key": row.key} for row in rows if not row.product_id]
    try:
        ids = {row["key"]: row["product_id"] for row in with_ids(unnamed, snapshot_uri)}
    except (VitrineError, OSError):  # the snapshot is no longer kept: the pictures still say which products they are
        ids = {}
    return [_line(row.product_id or ids.get(row.key, ""), row.image_uri, row) for row in rows]


def _line(product_id: str, image: str, why: QuarantineEntry | None) -> QuarantineLine:
    if why is None:
        return QuarantineLine(product_id, image, "", "the list of the run that found out is no longer kept", "")
    return QuarantineLine(product_id, image, why.reason, why.detail.removeprefix(f"{image}: "), why.run)


def _reasons(store: str, runs: Iterable[str], keys: set[int]) -> dict[int, QuarantineEntry]:
    """key -> the entry of the newest of `runs` that lists it. Reads no more lists than needed."""
    found: dict[int, QuarantineEntry] = {}
    for run in islice(runs, RUNS):
        if len(found) == len(keys):
            break
        for row in read_quarantine(store, [run]):
            if row.key in keys:
                found.setdefault(row.key, row)
    return found


def _runs(version: Version, versions: Sequence[Version]) -> Iterator[str]:
    """Run keys of a version and its ancestors, newest first."""
    known = {v.version: v for v in versions}
    here: Version | None = version
    while here is not None:
        if run_key := here.tags.get("run_key", ""):
            yield run_key
        here = known.get(here.tags.get(PARENT, ""))


def _base_runs(registry: Registry, manifest: IndexManifest) -> list[str]:
    runs = dict.fromkeys(s.table.run_id for s in manifest.segments if s.kind == "base" and s.table.run_id)
    return [key for key in map(registry.run_key, runs) if key]


def latest_list(store: str) -> list[QuarantineEntry]:
    """The quarantine of the last run, for a store without an index version."""
    runs = [
        uri.rsplit("/", 1)[1].removesuffix(".parquet")
        for uri in storage.list_files(storage.join(store, "quarantine"), ".parquet")
    ]
    return read_quarantine(store, sorted(runs)[-1:])
