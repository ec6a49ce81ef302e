"""Differences between two index versions: products, files, encoder, gates, and answers to the same photos."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.ranking.features import LEVELS
from serving.versions.release import Release
from tasks.catalog.changes.ledger import deleted_products, ledger_of
from tasks.catalog.snapshot import read_snapshot
from tasks.registry import Registry
from tasks.release.gates.end_to_end_eval import EndToEndResult, held_out_queries, measure
from tasks.release.gates.evaluate import open_version

NAMED = 10
PHOTOS = 30
COMPARED = ("title", "price", "in_stock", "category", "brand", "image_uri", "images", "updated_at")


@dataclass(frozen=True)
class Products:
    """Products added, removed and changed between two versions: counts, and the first few ids."""

    before: int
    after: int
    added: int
    removed: int
    changed: int
    added_ids: tuple[str, ...]
    removed_ids: tuple[str, ...]
    changed_ids: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A gate's value in both versions; None where not measured."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Answer:
    """One photo asked of both: the product it shows, its place in either answer (1 best, 0 not there), and the share of the
    first version's top 20 that the second keeps."""

    photo: str
    shows: str
    before: int
    after: int
    kept: float


@dataclass(frozen=True)
class Difference:
    """All differences. `files_kept` of `files_after` files are shared; `new_bytes` are those of the others.

    `rankers`: weights and rules as JSON, as far as they are not the defaults.
    """

    before: str
    after: str
    encoders: tuple[str, str]
    families: tuple[str, str]
    rankers: tuple[str, str]
    products: Products
    files_kept: int
    files_after: int
    new_bytes: int
    figures: tuple[Figure, ...]
    answers: tuple[Answer, ...]


def difference(registry: Registry, before: str, after: str, photos: int = PHOTOS) -> Difference:
    """Opens and compares two versions. Raises VitrineError or ContractError when one is missing or damaged."""
    old, new = (open_version(registry, version) for version in (before, after))
    held = {f.sha256 for f in old.manifest.files()}
    fresh = [f for f in new.manifest.files() if f.sha256 not in held]
    return Difference(
        before=before,
        after=after,
        encoders=(old.manifest.encoder.version, new.manifest.encoder.version),
        families=(str(old.manifest.search.get("family", "")), str(new.manifest.search.get("family", ""))),
        rankers=(json.dumps(old.manifest.ranker, sort_keys=True), json.dumps(new.manifest.ranker, sort_keys=True)),
        products=products(old, new),
        files_kept=len(new.manifest.files()) - len(fresh),
        files_after=len(new.manifest.files()),
        new_bytes=sum(f.bytes for f in fresh),
        figures=figures(old, new),
        answers=answers(old, new, photos, deleted_products(ledger_of(new.manifest, registry.file))) if photos else (),
    )


def products(old: Release, new: Release) -> Products:
    """Compares the live rows of both versions on COMPARED columns that both have."""
    (old_keys, old_rows), (new_keys, new_rows) = _live(old), _live(new)
    added, removed = ~np.isin(new_keys, old_keys), ~np.isin(old_keys, new_keys)
    common, at_old, at_new = np.intersect1d(old_keys, new_keys, return_indices=True)
    differs = np.zeros(len(common), bool)
    for name in COMPARED:
        tables = old.searcher.features.table, new.searcher.features.table
        if all(name in table.column_names for table in tables):
            a, b = (_comparable(t[name].take(rows)) for t, rows in zip(tables, (old_rows[at_old], new_rows[at_new]), strict=True))
            unknown = pc.xor(pc.is_null(a), pc.is_null(b))
            differs |= pc.or_(pc.fill_null(pc.not_equal(a, b), False), unknown).to_numpy()
    return Products(
        before=len(old_keys), after=len(new_keys), added=int(added.sum()), removed=int(removed.sum()), changed=int(differs.sum()),
        added_ids=_ids(new, new_rows[added]), removed_ids=_ids(old, old_rows[removed]), changed_ids=_ids(new, new_rows[at_new][differs]),
    )  # fmt: skip


def figures(old: Release, new: Release) -> tuple[Figure, ...]:
    """Gate values of both versions, in the order of the newer one."""
    before = {g.name: g.value for g in old.manifest.gates}
    after = {g.name: g.value for g in new.manifest.gates}
    names = [*after, *(name for name in before if name not in after)]
    return tuple(Figure(name, before.get(name), after.get(name)) for name in names)


def answers(old: Release, new: Release, photos: int, deleted: Collection[str] = ()) -> tuple[Answer, ...]:
    """Answers of both to the same held-out photos of the newer snapshot, except photos of `deleted` products."""
    snapshot = read_snapshot(new.manifest.snapshot.uri)
    asked = held_out_queries(snapshot, photos, deleted)
    first, second = (measure(r, snapshot, asked, f"ask version {r.version}") for r in (old, new))
    return tuple(_answers(first, second))


def _answers(first: EndToEndResult, second: EndToEndResult) -> Sequence[Answer]:
    found = []
    for n, query in enumerate(first.queries):
        kept = len(set(first.answers[n]) & set(second.answers[n])) / max(len(first.answers[n]), 1)
        places = int(first.ranks[n]) + 1, int(second.ranks[n]) + 1
        found.append(Answer(query.photo_uri, query.product_id, *places, kept))
    return found


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists of names as one text each: Arrow compares only simple values."""
    return pc.binary_join(column, LEVELS) if pa.types.is_list(column.type) else column


def _live(release: Release) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the live products and their rows."""
    rows = np.flatnonzero(release.searcher.live())
    return release.searcher.features.key[rows], rows


def _ids(release: Release, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(r["product_id"] for r in release.searcher.features.take(rows[:NAMED], ["product_id"]))
