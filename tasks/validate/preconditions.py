"""Fast checks of a catalogue before a pipeline starts; reports all problems at once."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from tasks.catalog.product_pictures import PICTURE_LISTS, TOO_LONG, choose_pictures
from tasks.catalog.schema import REQUIRED, RowLimits
from tasks.catalog.sources.settings import row_limits, source_options
from tasks.catalog.values import ValueProblem, read
from tasks.errors import CatalogAway, CatalogError, CatalogMissing, ServiceAway, SettingsError, TrainingError
from tasks.masking import mask
from tasks.settings import Settings
from tasks.validate.findings import Findings, checked_rows, shorten
from tasks.validate.labelled_photos import Labels, check_photos, read_labels
from tasks.validate.pictures import PictureCheck, check_pictures
from tasks.validate.row_values import out_of_bounds, time_of
from tasks.validate.rows import Row, Table, open_tables
from tasks.validate.snapshot import SnapshotLimits

NO_TEXT_TOWER = (
    "has no text tower, so that products without a picture cannot be found by their titles: take an encoder with one, or set "
    "VITRINE_TEXT_ONLY=false, which sets these products aside"
)


def check_preconditions(
    settings: Settings, progress: Callable[[int, int], None] = lambda *_: None, training: bool = True
) -> list[str]:
    """Checks the catalogue of the settings, returns notes; `training` adds the requirements of training an encoder.

    `progress` is told how many pictures of how many were looked at.
    Of a folder all rows are read (up to a million) and up to 5,000 pictures each are looked at; of a database the first 20,000
    rows. Raises CatalogError with everything that is wrong; CatalogAway where it does not answer.
    """
    found = Findings()
    if training:
        training = _trains(settings, found)
    try:
        with open_tables(settings.catalog_uri, source_options(settings)) as tables:
            products, further = _products(tables.products, settings, found)
            depicted = {product_id for product_id, (_, uri) in products.items() if uri}
            if bare := len(products) - len(depicted):
                found.notes.append(f"{bare} products have no picture and are found by words alone: VITRINE_TEXT_ONLY")
            labels = read_labels(tables.photos, depicted if products and tables.products.whole else None, found)
            shown = _product_pictures(tables.products, products, further, tables.image_root, settings, found, progress)
            if tables.photos is None or labels is not None:
                check_photos(labels or Labels(), shown, products, tables.image_root, settings, found, progress, training)
    except CatalogMissing:  # nothing to look at yet: scheduled runs wait for it
        raise
    except ServiceAway as error:  # no fault of the catalogue: the step is tried again
        raise CatalogAway(f"{mask('catalog', settings.catalog_uri)}: {error}") from None
    except (CatalogError, SettingsError, pa.ArrowException) as error:
        found.wrong.append(str(error))
    if found.wrong:
        count = f"{len(found.wrong)} things have" if len(found.wrong) > 1 else "one thing has"
        name = mask("catalog", settings.catalog_uri)
        raise CatalogError("\n".join([f"{count} to be mended in the catalogue {name}:", *(f"  - {w}" for w in found.wrong)]))
    return found.notes


def _trains(settings: Settings, findings: Findings) -> bool:
    """Whether the encoder of the settings is trained on labelled photos, rather than taken as it is."""
    from tasks.encoder.lookup import find_encoder

    try:
        chosen = find_encoder(settings.encoder_preset)
        if settings.text_only and not chosen.has_text:
            findings.wrong.append(f"VITRINE_ENCODER_PRESET={settings.encoder_preset} {NO_TEXT_TOWER}")
        return chosen.teacher_recipe.steps > 0
    except TrainingError as error:
        findings.wrong.append(f"VITRINE_ENCODER_PRESET: {error}")
        return True


def _products(table: Table, settings: Settings, findings: Findings) -> tuple[dict[str, tuple[str, str]], list[tuple[str, str]]]:
    """Place and main picture of each product by id; and the further pictures, each with its product's place."""
    limits, places = SnapshotLimits.from_settings(settings), dict[str, str]()
    bounds = row_limits(settings)
    listed = [name for name in PICTURE_LISTS if name in table.columns]
    required = tuple(n for n in REQUIRED if not (listed and n == "image_uri"))
    further: list[tuple[str, str]] = []

    def problems(row: Row) -> Iterator[str]:
        if listed:
            row["image_uri"], row["further"], left_out = _pictures(row, listed, bounds)
            if left_out and not row["image_uri"]:
                yield f"{table.as_written('image_uri')}: {TOO_LONG.format(bounds.longest_uri)}"
                return
        yield from (f"no {table.as_written(name)}" for name in bounds.required if row[name] is None or row[name] == "")
        yield from out_of_bounds(row, limits, table.as_written("image_uri"))

    rows = checked_rows(table, required, problems, findings, settings.most_quarantined)
    twice = []
    for place, row in rows:
        first = places.setdefault(str(row["product_id"]), place)
        if first is not place:
            twice.append(f"{table.name} {place}: product_id {row['product_id']!r} is that of {first} already; ids must be unique")
    findings.wrong += shorten(twice)
    newest = max((t for _, r in rows if (t := time_of(r.get("updated_at"))) is not None), default=None)
    if newest is not None and limits.max_age_days and datetime.now(UTC) - newest > timedelta(days=limits.max_age_days):
        findings.wrong.append(
            f"{table.name}: the newest change is of {newest:%Y-%m-%d}, allowed {limits.max_age_days:g} days: VITRINE_CATALOG_MAX_AGE_DAYS"
        )
    if table.columns and not rows and not findings.wrong:
        findings.wrong.append(f"{table.name}: the catalogue has no products")
    further = [(place, uri) for place, row in rows for uri in row.get("further") or ()]
    return {str(row["product_id"]): (place, str(row["image_uri"] or "")) for place, row in rows}, further


def _pictures(row: Row, listed: list[str], limits: RowLimits) -> tuple[str, list[str], int]:
    """Main and further pictures of a row as a snapshot has them, and how many it leaves out; a list that cannot be read is told of
    elsewhere."""
    uris: list[str] = []
    for name in listed:
        with suppress(ValueProblem):
            uris += read(row.get(name), "uris")
    return choose_pictures(str(row.get("image_uri") or ""), uris, limits.longest_uri, limits.most_pictures)


def _product_pictures(
    table: Table,
    products: dict[str, tuple[str, str]],
    further: list[tuple[str, str]],
    root: str,
    settings: Settings,
    findings: Findings,
    progress: Callable[[int, int], None],
) -> PictureCheck:
    """Checks all pictures; the result is that of the main ones, a row each product."""
    every = [*products.values(), *further]
    places, uris = [p for p, _ in every], [u for _, u in every]
    looked = check_pictures(uris, root, settings.image_hosts, progress)
    lines = [f"{places[row]}: {looked.bad[row]}" for row in sorted(looked.bad)]
    if looked.exceeds(settings.most_quarantined):
        allowed = f"allowed {settings.most_quarantined * 100:.3g} %: VITRINE_MOST_QUARANTINED"
        findings.add(f"{table.name}: {looked.shares()} pictures unusable, {allowed}", lines)
    elif lines:
        told = "; ".join(shorten(lines)[:5])
        lost = "a product that has no other is left out" if further else "their products are left out"
        findings.notes.append(f"{looked.shares()} pictures unusable, {lost}: {table.name} {told}")
    return looked.first(len(products), sum(bool(uri) for _, uri in products.values()))
