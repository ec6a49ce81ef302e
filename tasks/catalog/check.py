"""`vitrine catalog check`: what would become of a catalogue, found from a sample of its rows and pictures, before any DAG runs."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.image_header import open_image
from serving.contract.image_limits import DEFAULT_LIMITS, ImageRejected
from tasks.catalog.check_columns import ColumnUse, column_uses
from tasks.catalog.product_pictures import IMAGES, PICTURE_ROWS, picture_rows
from tasks.catalog.schema import ALIASES, EMPTY, ProductRows, read_products, to_photos
from tasks.catalog.sources import open_source
from tasks.catalog.sources.pictures import attach_pictures
from tasks.catalog.sources.settings import source_options
from tasks.catalog.sources.source import RawSource
from tasks.embed.images import fetcher, read_image
from tasks.errors import CatalogError, CatalogMissing, VitrineError
from tasks.settings import Settings

ROWS, PICTURES = 20_000, 50
THREADS = 8
EXAMPLES = 3
VALUE = re.compile(r"'(?:[^'\\]|\\.)*'|\b\d[\d.e+]*\b")
"""Values within a problem, without which problems of one kind are alike."""
HINT = 'if they have other names, say so, such as VITRINE_CATALOG_COLUMNS=\'{product_id = "sku", title = "name"}\''


@dataclass(frozen=True)
class Reason:
    """One kind of problem: what is wrong with the first of `count` rows (or pictures), and the first products it concerns."""

    column: str
    problem: str
    count: int
    products: list[str]


@dataclass(frozen=True)
class Pictures:
    """Pictures of the sample that were fetched: how many can be reached, and why the others cannot.

    The usable products have `total` pictures, `least` to `most` each; `left_out` further ones are too many, or their address too long.
    """

    tried: int
    reached: int
    reasons: list[Reason] = field(default_factory=list)
    total: int = 0
    least: int = 0
    most: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class CatalogCheck:
    """`rows` is the size of the sample, `whole` whether that is all of them; `wrong` are sentences of what has to be mended.

    `labelled_photos` is how many of the first photos could be read; None where there is no such table. `title_only` products name no
    picture: with `text_only` they are found by their titles, without it their rows are set aside.
    """

    catalogue: str
    rows: int = 0
    whole: bool = False
    columns: list[ColumnUse] = field(default_factory=list)
    set_aside: int = 0
    reasons: list[Reason] = field(default_factory=list)
    title_only: int = 0
    text_only: bool = False
    pictures: Pictures | None = None
    labelled_photos: int | None = None
    wrong: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.wrong


def check_catalog(settings: Settings, shown: str, rows: int = ROWS, pictures: int = PICTURES) -> CatalogCheck:
    """Looks at the first `rows` products and at `pictures` of their pictures. What cannot be read at all is in `wrong`.

    `shown` is the catalogue's address without secrets. Reads only; raises nothing for a catalogue that is wrong.
    """
    try:
        with open_source(settings.catalog_uri, source_options(settings)) as source:
            return _check(source, shown, settings, rows, pictures)  # type: ignore[arg-type]
    except (VitrineError, pa.ArrowException) as error:
        return CatalogCheck(shown, wrong=[str(error)])


def _check(source: RawSource, shown: str, settings: Settings, rows: int, pictures: int) -> CatalogCheck:
    sample, whole = _sample(source, rows)
    if not sample:
        raise CatalogMissing(f"{source.name}: the catalogue has no products")
    mapping = source.options.columns
    left_out = dict(source.left_out)
    wrong: list[str] = []
    found: list[ProductRows] = []
    pictured = False
    try:
        mapped = [mapping.apply(batch, source.name) for batch in sample]
        mapped = attach_pictures(mapped, source.picture_rows(), f"{source.name}, the table of pictures")
        left_out |= source.left_out
        pictured = PICTURE_ROWS in mapped[0].schema.names
        for batch in mapped:
            found.append(read_products(batch, source.name, source.options.limits))
    except CatalogError as error:
        wrong.append(str(error))
    uses = column_uses(sample[0].schema, mapping, left_out, found, pictured)
    if wrong:
        wrong += [HINT] if any(use.needed for use in uses) else []
        return CatalogCheck(shown, sum(b.num_rows for b in sample), whole, uses, wrong=wrong)
    usable = pa.concat_tables([_picture_columns(f.table) for f in found], promote_options="default")
    reasons = _reasons(found, source.rejected)
    text_only = source.options.limits.text_only
    bare = sum(r.problem == EMPTY and ALIASES.get(r.column, r.column) == "image_uri" for f in found for r in f.unusable)
    depicted = usable.filter(pc.not_equal(usable["image_uri"], ""))
    looked = _pictures(depicted, source.image_root, settings, pictures)
    looked = replace(looked, left_out=sum(sum(f.pictures_left_out.to_pylist()) for f in found if f.pictures_left_out is not None))
    count = sum(b.num_rows for b in sample) + len(source.rejected)
    set_aside = count - len(usable)
    wrong += _twice(usable) + _verdicts(set_aside, count, looked, whole and looked.tried == looked.total, settings)
    photos, problem = _photos(source)
    wrong += [problem] if problem else []
    title_only = len(usable) - len(depicted) if text_only else bare
    return CatalogCheck(shown, count, whole, uses, set_aside, reasons, title_only, text_only, looked, photos, wrong)


def _sample(source: RawSource, rows: int) -> tuple[list[pa.RecordBatch], bool]:
    """The first batches of the source, and whether these are all."""
    found: list[pa.RecordBatch] = []
    held = 0
    for batch in source.raw():
        if held >= rows and batch.num_rows:
            return found, False
        kept = batch.slice(0, rows - held)
        held += batch.num_rows
        if kept.num_rows:
            found.append(kept)
        if held > rows:
            return found, False
    return found, True


def _reasons(found: Sequence[ProductRows], rejected: Sequence[str]) -> list[Reason]:
    """Rows set aside, by column and kind of problem."""
    rows = [(row.column, VALUE.sub("…", row.problem), row.problem, row.product_id) for f in found for row in f.unusable]
    return _grouped(rows + [("", "fields", row, "") for row in rejected])


def _grouped(rows: Sequence[tuple[str, str, str, str]]) -> list[Reason]:
    """(column, kind, problem, product_id) as one reason for each column and kind, the most frequent first."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for column, kind, problem, product_id in rows:
        groups.setdefault((column, kind), []).append((problem, product_id))
    reasons = [
        Reason(column, held[0][0], len(held), [product for _, product in held[:EXAMPLES] if product])
        for (column, _), held in groups.items()
    ]
    return sorted(reasons, key=lambda reason: -reason.count)


def _twice(usable: pa.Table) -> list[str]:
    counts = usable["product_id"].value_counts()
    again = [c["values"] for c in counts.to_pylist() if c["counts"] > 1]
    if not again:
        return []
    return [f"{len(again)} ids occur more than once, the first is {again[0]!r}; product_id must be unique"]


def _verdicts(set_aside: int, count: int, pictures: Pictures, all_tried: bool, settings: Settings) -> list[str]:
    """What a run would refuse; of a sample of pictures, what it would refuse by more than three standard errors."""
    wrong = []
    allowed = f"at most {settings.most_quarantined * 100:.3g} % may be: VITRINE_MOST_QUARANTINED"
    if set_aside > settings.most_quarantined * count:
        wrong.append(f"{set_aside} of {count} rows would be set aside; {allowed}")
    missed = pictures.tried - pictures.reached
    error = 3 * (missed * pictures.reached / pictures.tried**3) ** 0.5 if pictures.tried and not all_tried else 0.0
    if pictures.tried and missed / pictures.tried - error > settings.most_quarantined:
        wrong.append(f"{missed} of {pictures.tried} pictures cannot be reached or are none; {allowed}")
    return wrong


def _pictures(usable: pa.Table, root: str, settings: Settings, most: int) -> Pictures:
    """Fetches pictures drawn evenly from the sample."""
    pictures = picture_rows(usable)
    each = np.bincount(np.cumsum(pictures["position"].to_numpy() == 0)) if len(pictures) else np.zeros(1, int)
    chosen = np.random.default_rng(0).permutation(len(pictures))[:most]
    rows = pictures.take(pa.array(np.sort(chosen))).to_pylist()
    web = fetcher(settings.image_hosts, settings.image_hosts_private, settings.image_fetch_s)

    def problem(row: dict[str, str]) -> tuple[str, str, str, str] | None:
        uri = row["image_uri"]
        try:
            data = read_image(uri, root, web)
        except ImageRejected as error:
            return "image", error.reason, str(error), row["key"]
        try:
            open_image(data, DEFAULT_LIMITS)
        except ImageRejected as error:
            return "image", error.reason, f"{uri}: {error}", row["key"]
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        problems = [found for found in pool.map(problem, rows) if found]
    least, greatest = (int(each[1:].min()), int(each[1:].max())) if len(pictures) else (0, 0)
    return Pictures(len(rows), len(rows) - len(problems), _grouped(problems), len(pictures), least, greatest)


def _picture_columns(rows: pa.Table) -> pa.Table:
    """Usable products (product_id, image_uri and, where there are such lists, images), with the id as `key` too."""
    names = [n for n in ("product_id", "image_uri", IMAGES) if n in rows.column_names]
    return rows.select(names).append_column("key", rows["product_id"])


def _photos(source: RawSource) -> tuple[int | None, str]:
    """Labelled photos in the first batch, and what is wrong with them."""
    try:
        for batch in source.photos():
            return len(to_photos(batch, source.name)), ""
    except (VitrineError, pa.ArrowException) as error:
        return None, f"photos: {error}"
    return None, ""
