"""Fast checks of a catalogue before a pipeline starts; reports all problems at once."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from tasks.catalog.schema import REQUIRED
from tasks.catalog.sources.settings import source_options
from tasks.errors import CatalogError, CatalogMissing, SettingsError, TrainingError
from tasks.masking import mask
from tasks.settings import Settings
from tasks.validate.findings import Findings, checked_rows, shorten
from tasks.validate.labelled_photos import Labels, check_photos, read_labels
from tasks.validate.pictures import PictureCheck, check_pictures
from tasks.validate.row_values import out_of_bounds, time_of
from tasks.validate.rows import Row, Table, open_tables
from tasks.validate.snapshot import SnapshotLimits


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
        training = _trains(settings, found)
    try:
        with open_tables(settings.catalog_uri, source_options(settings)) as tables:
            products = _products(tables.products, settings, found)
            labels = read_labels(tables.photos, set(products) if products and tables.products.whole else None, found)
            shown = _product_pictures(tables.products, products, tables.image_root, settings, found, progress)
            if tables.photos is None or labels is not None:
                check_photos(labels or Labels(), shown, products, tables.image_root, settings, found, progress, training)
    except CatalogMissing:  # nothing to look at yet: scheduled runs wait for it
        raise
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
        return find_encoder(settings.encoder_preset).teacher_recipe.steps > 0
    except TrainingError as error:
        findings.wrong.append(f"VITRINE_ENCODER_PRESET: {error}")
        return True


def _products(table: Table, settings: Settings, findings: Findings) -> dict[str, tuple[str, str]]:
    """Place and picture of each product by id."""
    limits, places = SnapshotLimits.from_settings(settings), dict[str, str]()

    def problems(row: Row) -> Iterator[str]:
        yield from (f"no {table.as_written(name)}" for name in REQUIRED if row[name] is None or row[name] == "")
        yield from out_of_bounds(row, limits, table.as_written("image_uri"))

    rows = checked_rows(table, REQUIRED, problems, findings, settings.most_quarantined)
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
    return {str(row["product_id"]): (place, str(row["image_uri"] or "")) for place, row in rows}


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
