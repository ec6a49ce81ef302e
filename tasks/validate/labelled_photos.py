"""Checks what recall is measured on and encoders are trained on: labelled photos, and the pictures whose views stand in for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tasks.catalog.photo_box import box_of, with_box
from tasks.catalog.schema import SPLITS
from tasks.catalog.splits import is_unseen, photo_split
from tasks.settings import Settings
from tasks.validate.findings import Findings, checked_rows, shorten
from tasks.validate.pictures import PictureCheck, check_pictures
from tasks.validate.row_values import time_of
from tasks.validate.rows import Row, Table


@dataclass
class Labels:
    """Labelled photos: uri, product, split and place in the file; photos of unknown products are left out."""

    uris: list[str] = field(default_factory=list)
    products: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def of(self, *splits: str) -> list[int]:
        return [row for row, split in enumerate(self.splits) if split in splits]


def read_labels(table: Table | None, known: set[str] | None, findings: Findings) -> Labels | None:
    """The usable photos; None when the table cannot be read. Photos of unknown products become a note."""
    if table is None:
        return None
    split_of: dict[str, str] = {}

    def problems(row: Row) -> Iterator[str]:
        yield from (f"no {table.as_written(n)}" for n in ("photo_uri", "product_id") if row[n] is None or row[n] == "")
        if (split := row.get("split")) and split not in SPLITS:
            yield f"split {split!r} is not one of {', '.join(SPLITS)}"
        if row.get("taken_at") not in (None, "") and time_of(row["taken_at"]) is None:
            yield f"taken_at {row['taken_at']!r} is not a time (ISO 8601, such as 2026-11-30 12:00:00)"
        if wrong := _address(row)[1]:
            yield wrong
        uri = str(row["photo_uri"] or "")
        split = split or photo_split(uri)
        if split_of.setdefault(uri, split) != split:
            yield f"photo {uri!r} is in the splits {split_of[uri]} and {split}; a photo may be in one only"

    before = len(findings.wrong)
    rows = checked_rows(table, ("photo_uri", "product_id"), problems, findings)
    if len(findings.wrong) > before and not rows:
        return None
    labels, orphans = Labels(), []
    for place, row in rows:
        product, uri = str(row["product_id"]), str(row["photo_uri"] or "")
        if known is not None and product not in known:
            orphans.append(f"{place} ({product})")
            continue
        labels.uris.append(_address(row)[0])
        labels.products.append(product)
        labels.splits.append(row.get("split") or photo_split(uri))
        labels.places.append(place)
    if orphans:
        first = ", ".join(orphans[:5])
        findings.notes.append(
            f"{len(orphans)} photos show products that are not in the catalogue, or have no picture: {table.name} {first}"
        )
    return labels


def _address(row: Row) -> tuple[str, str]:
    """The photo's address with the box in it, and what is wrong with that box, "" for nothing."""
    uri = str(row["photo_uri"] or "")
    try:
        return with_box(uri, box_of(row)), ""
    except ValueError as error:
        return uri, str(error)


def check_photos(
    labels: Labels, shown: PictureCheck, products: dict[str, tuple[str, str]], root: str, settings: Settings, findings: Findings,
    progress: Callable[[int, int], None], training: bool,
) -> None:  # fmt: skip
    """Checks the pictures of held-out photos; with `training` those of train photos, and that products can be trained on.

    Where few photos are held out, views of the usable pictures `shown` stand in for photos of products without one.
    """
    held_out = labels.of("val") or labels.of("test")
    looked = check_pictures([labels.uris[r] for r in held_out], root, settings.image_hosts, progress)
    unusable = [f"{labels.places[held_out[r]]}: {looked.bad[r]}" for r in sorted(looked.bad)]
    _enough_queries(labels, held_out, looked, unusable, shown, products, settings, findings)
    if not training:
        return
    _unreadable("held-out photos", looked, unusable, settings, findings)
    train = labels.of("train")
    if not train:
        findings.notes.append(
            "photos: none is in the split train; an encoder can only be trained on views of the products' pictures"
        )
    read = check_pictures([labels.uris[r] for r in train], root, settings.image_hosts, progress)
    _unreadable("train photos", read, [f"{labels.places[train[r]]}: {read.bad[r]}" for r in sorted(read.bad)], settings, findings)
    if read.whole and shown.whole:
        _trainable(labels, train, read, shown, list(products), settings, findings)


def _enough_queries(
    labels: Labels, held_out: list[int], looked: PictureCheck, unusable: list[str], shown: PictureCheck,
    products: dict[str, tuple[str, str]], settings: Settings, findings: Findings,
) -> None:  # fmt: skip
    """There is enough to measure recall on; a note says where views stand in for photos."""
    photos, views = len(looked.usable), 0
    if len(held_out) < settings.enough_photos:
        with_photo, pictures = {labels.products[row] for row in held_out}, list(products.items())
        views = len({uri for id_, (_, uri) in (pictures[row] for row in shown.usable) if id_ not in with_photo})
    if photos + views < settings.min_held_out:
        findings.add(
            f"photos: {photos} usable photos are held out (split val, or test) and {views} product pictures could stand in for others, "
            f"at least {settings.min_held_out} queries are needed to measure recall: VITRINE_MIN_HELD_OUT",
            unusable,
        )
    elif views:
        findings.notes.append(
            f"recall is measured on synthetic queries{f' too, beside {photos} held-out photos' if photos else ''}: views of the pictures "
            "of products without a held-out photo (VITRINE_ENOUGH_PHOTOS); they are easier than shoppers' photos"
        )


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
