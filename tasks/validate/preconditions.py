"""Fast checks of a catalogue before a pipeline starts; reports all problems at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from tasks.catalog.schema import ALIASES, REQUIRED, SPLITS
from tasks.catalog.splits import is_unseen, photo_split
from tasks.errors import CatalogError, CatalogMissing, TrainingError
from tasks.settings import Settings, mask
from tasks.validate.pictures import PictureCheck, check_pictures
from tasks.validate.rows import Row, Table, open_tables
from tasks.validate.snapshot import SnapshotLimits

SHOWN = 20
"""Rows of one kind that are named; the others are counted."""
NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "n/a", "#N/A")
FLAGS = ("true", "false", "0", "1")


@dataclass
class Findings:
    """Problems as sentences, and notes that need no action."""

    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, headline: str, lines: list[str]) -> None:
        self.wrong.append("\n".join([headline, *(f"    {line}" for line in shorten(lines))]))


@dataclass
class Labels:
    """Labelled photos: uri, product, split and place in the file; photos of unknown products are left out."""

    uris: list[str] = field(default_factory=list)
    products: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def of(self, *splits: str) -> list[int]:
        return [row for row, split in enumerate(self.splits) if split in splits]


def check_preconditions(
    settings: Settings, progress: Callable[[int, int], None] = lambda *_: None, training: bool = True
) -> list[str]:
    """Checks the catalogue of the settings, returns notes; `training` adds the requirements of training an encoder.

    `progress` is told how many pictures of how many were looked at.
    Of a folder all rows are read (up to a million) and up to 5,000 pictures each are looked at; of a database the first 20,000
    rows. Raises CatalogError with everything that is wrong.
    """
    found = Findings()
    if training:
        _check_preset(settings, found)
    try:
        with open_tables(settings.catalog_uri) as tables:
            products = _products(tables.products, settings, found)
            labels = _labels(tables.photos, set(products) if products and tables.products.whole else None, found)
            shown = _product_pictures(tables.products, products, tables.image_root, settings, found, progress)
            if tables.photos is None:
                found.wrong.append(
                    "there is no table of photos (photos.csv): encoders are trained, and recall is measured, on them"
                )
            elif labels is not None:
                _photos(labels, shown, products, tables.image_root, settings, found, progress, training)
    except CatalogMissing:  # nothing to look at yet: scheduled runs wait for it
        raise
    except (CatalogError, pa.ArrowException) as error:
        found.wrong.append(str(error))
    if found.wrong:
        count = f"{len(found.wrong)} things have" if len(found.wrong) > 1 else "one thing has"
        name = mask("catalog", settings.catalog_uri)
        raise CatalogError("\n".join([f"{count} to be mended in the catalogue {name}:", *(f"  - {w}" for w in found.wrong)]))
    return found.notes


def shorten(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def _check_preset(settings: Settings, findings: Findings) -> None:
    from tasks.encoder.presets import preset

    try:
        preset(settings.encoder_preset)
    except TrainingError as error:
        findings.wrong.append(f"VITRINE_ENCODER_PRESET: {error}")


def _checked_rows(table: Table, required: tuple[str, ...], problems: Callable[[Row], Iterator[str]], findings: Findings) -> list:
    """The (place, row) of readable rows; problems of the others go to the findings, one sentence each."""
    missing = [_readable(n) for n in required if n not in table.columns]
    if missing:
        names = ", ".join(missing)
        findings.wrong.append(f"{table.name}: the columns missing are {names}; found {', '.join(table.columns) or 'none'}")
        return []
    rows, wrong = [], []
    for place, row in table.rows():
        told = [row] if isinstance(row, str) else list(problems(row))
        wrong += [f"{table.name} {place}: {what}" for what in told]
        if not isinstance(row, str):
            rows.append((place, row))
    findings.wrong += shorten(wrong)
    if not wrong:
        table.read()  # what only the conversion itself notices
    return rows


def _products(table: Table, settings: Settings, findings: Findings) -> dict[str, tuple[str, str]]:
    """Place and picture of each product by id."""
    limits, places = SnapshotLimits.from_settings(settings), dict[str, str]()

    def problems(row: Row) -> Iterator[str]:
        yield from (f"no {_readable(name)}" for name in REQUIRED if row[name] is None or row[name] == "")
        yield from _out_of_bounds(row, limits)

    rows = _checked_rows(table, REQUIRED, problems, findings)
    twice = []
    for place, row in rows:
        first = places.setdefault(str(row["product_id"]), place)
        if first is not place:
            twice.append(f"{table.name} {place}: product_id {row['product_id']!r} is that of {first} already; ids must be unique")
    findings.wrong += shorten(twice)
    newest = max((t for _, r in rows if (t := _time(r.get("updated_at"))) is not None), default=None)
    if newest is not None and limits.max_age_days and datetime.now(UTC) - newest > timedelta(days=limits.max_age_days):
        findings.wrong.append(
            f"{table.name}: the newest change is of {newest:%Y-%m-%d}, allowed {limits.max_age_days:g} days: VITRINE_CATALOG_MAX_AGE_DAYS"
        )
    if table.columns and not rows and not findings.wrong:
        findings.wrong.append(f"{table.name}: the catalogue has no products")
    return {str(row["product_id"]): (place, str(row["image_uri"] or "")) for place, row in rows}


def _out_of_bounds(row: Row, limits: SnapshotLimits) -> Iterator[str]:
    for name, least, most, setting in (
        ("price", 0.0, limits.max_price, "VITRINE_MAX_PRICE"),
        ("popularity", 0.0, float("inf"), ""),
    ):
        value = row.get(name)
        if value is None or value in NULLS:
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            yield f"{name} {value!r} is not a number"
            continue
        if not least <= number <= most:
            bounds = f"{least:g} to {most:g}: {setting}" if setting else f"{least:g} or more"
            yield f"{name} {number:g}, allowed {bounds}"
    for name, most, setting in (
        ("title", limits.longest_title, "VITRINE_MAX_TITLE_LENGTH"), ("image_uri", limits.longest_uri, "VITRINE_MAX_URI_LENGTH"),
    ):  # fmt: skip
        if len(str(row[name] or "")) > most:
            yield f"{_readable(name)} of {len(str(row[name]))} characters, allowed {most}: {setting}"
    steps = row.get("category")
    depth = len(steps if isinstance(steps, list) else [s for s in str(steps or "").split(">") if s.strip()])
    if depth > limits.deepest_category:
        yield f"a category of {depth} steps, allowed {limits.deepest_category}: VITRINE_MAX_CATEGORY_DEPTH"
    for name in ("in_stock", "priority"):
        value = row.get(name)
        if isinstance(value, str) and value not in NULLS and value.strip().lower() not in FLAGS and not _whole_number(value):
            yield f"{name} {value!r} is not one of 1, 0, true, false"
    if row.get("updated_at") is not None:
        when = _time(row["updated_at"])
        if when is None:
            yield f"updated_at {row['updated_at']!r} is not a time (ISO 8601, such as 2026-11-30 12:00:00)"
        elif when - datetime.now(UTC) > timedelta(days=limits.most_days_ahead):
            yield f"updated_at {row['updated_at']} lies ahead, allowed {limits.most_days_ahead:g} days: VITRINE_MAX_DAYS_AHEAD"


def _labels(table: Table | None, known: set[str] | None, findings: Findings) -> Labels | None:
    """The usable photos; None when the table cannot be read. Photos of unknown products become a note."""
    if table is None:
        return None
    split_of: dict[str, str] = {}

    def problems(row: Row) -> Iterator[str]:
        yield from (f"no {_readable(n)}" for n in ("photo_uri", "product_id") if row[n] is None or row[n] == "")
        if (split := row.get("split")) and split not in SPLITS:
            yield f"split {split!r} is not one of {', '.join(SPLITS)}"
        if row.get("taken_at") not in (None, "") and _time(row["taken_at"]) is None:
            yield f"taken_at {row['taken_at']!r} is not a time (ISO 8601, such as 2026-11-30 12:00:00)"
        uri = str(row["photo_uri"] or "")
        split = split or photo_split(uri)
        if split_of.setdefault(uri, split) != split:
            yield f"photo {uri!r} is in the splits {split_of[uri]} and {split}; a photo may be in one only"

    before = len(findings.wrong)
    rows = _checked_rows(table, ("photo_uri", "product_id"), problems, findings)
    if len(findings.wrong) > before and not rows:
        return None
    labels, orphans = Labels(), []
    for place, row in rows:
        product, uri = str(row["product_id"]), str(row["photo_uri"] or "")
        if known is not None and product not in known:
            orphans.append(f"{place} ({product})")
            continue
        labels.uris.append(uri)
        labels.products.append(product)
        labels.splits.append(row.get("split") or photo_split(uri))
        labels.places.append(place)
    if orphans:
        first = ", ".join(orphans[:5])
        findings.notes.append(f"{len(orphans)} photos show products that are not in the catalogue: {table.name} {first}")
    return labels


def _product_pictures(
    table: Table,
    products: dict[str, tuple[str, str]],
    root: str,
    settings: Settings,
    findings: Findings,
    progress: Callable[[int, int], None],
) -> PictureCheck:
    places, uris = [p for p, _ in products.values()], [u for _, u in products.values()]
    looked = check_pictures(uris, root, settings.image_hosts, progress)
    lines = [f"{places[row]}: {looked.bad[row]}" for row in sorted(looked.bad)]
    if looked.exceeds(settings.most_quarantined):
        allowed = f"allowed {settings.most_quarantined * 100:.3g} %: VITRINE_MOST_QUARANTINED"
        findings.add(f"{table.name}: {looked.shares()} pictures unusable, {allowed}", lines)
    elif lines:
        told = "; ".join(shorten(lines)[:5])
        findings.notes.append(f"{looked.shares()} pictures unusable, their products are left out: {table.name} {told}")
    return looked


def _photos(
    labels: Labels, shown: PictureCheck, products: dict[str, tuple[str, str]], root: str, settings: Settings, findings: Findings,
    progress: Callable[[int, int], None], training: bool,
) -> None:  # fmt: skip
    held_out = labels.of("val") or labels.of("test")
    looked = check_pictures([labels.uris[r] for r in held_out], root, settings.image_hosts, progress)
    unusable = [f"{labels.places[held_out[r]]}: {looked.bad[r]}" for r in sorted(looked.bad)]
    if len(looked.usable) < settings.min_held_out:
        findings.add(
            f"photos: {len(looked.usable)} usable photos are held out (split val, or test), at least {settings.min_held_out} are needed "
            "to measure recall: VITRINE_MIN_HELD_OUT",
            unusable,
        )
    if not training:
        return
    _unreadable("held-out photos", looked, unusable, settings, findings)
    train = labels.of("train")
    if not train:
        findings.wrong.append("photos: none is in the split train; an encoder is trained on labelled photos")
        return
    read = check_pictures([labels.uris[r] for r in train], root, settings.image_hosts, progress)
    _unreadable("train photos", read, [f"{labels.places[train[r]]}: {read.bad[r]}" for r in sorted(read.bad)], settings, findings)
    if read.whole and shown.whole:
        _trainable(labels, train, read, shown, list(products), settings, findings)


def _unreadable(what: str, check: PictureCheck, lines: list[str], settings: Settings, findings: Findings) -> None:
    if check.exceeds(settings.max_unreadable):
        allowed = f"allowed {settings.max_unreadable * 100:.3g} %: VITRINE_MAX_UNREADABLE"
        findings.add(f"photos: {check.shares()} {what} unusable, {allowed}", lines)
    elif lines:
        findings.notes.append(f"{check.shares()} {what} unusable, they are left out: {'; '.join(shorten(lines)[:5])}")


def _trainable(
    labels: Labels,
    train: list[int],
    read: PictureCheck,
    shown: PictureCheck,
    ids: list[str],
    settings: Settings,
    findings: Findings,
) -> None:
    """Checks that labelled products have trainable pictures and that there are at least two products."""
    with_picture = {ids[row] for row in shown.usable if not is_unseen(ids[row])}
    seen = {labels.products[train[row]] for row in read.usable if not is_unseen(labels.products[train[row]])} | with_picture
    labelled = {labels.products[row] for row in train if not is_unseen(labels.products[row])}
    empty = sorted(labelled - seen)
    if len(empty) > settings.max_untrainable * len(labelled):
        findings.add(
            f"{len(empty)} of {len(labelled)} labelled products have no picture that can be trained on, allowed "
            f"{settings.max_untrainable * 100:.3g} %: VITRINE_MAX_UNTRAINABLE",
            empty,
        )
    if len(seen) < 2:
        findings.wrong.append(f"an encoder is trained on at least two products with usable pictures; there are {len(seen)}")


def _time(value: Any) -> datetime | None:
    """A time that a snapshot would read, in UTC where it has no zone; None for anything else."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _whole_number(text: str) -> bool:
    return text.strip().lstrip("+-").isdecimal()


def _readable(name: str) -> str:
    return next((short for short, full in ALIASES.items() if full == name), name)
