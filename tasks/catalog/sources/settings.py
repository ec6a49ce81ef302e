"""How a source is read, from the process's settings."""

from tasks.catalog.column_mapping import ColumnMapping
from tasks.catalog.schema import RowLimits
from tasks.catalog.sources.csv_format import CsvFormat
from tasks.catalog.sources.query import one_select
from tasks.catalog.sources.source import SourceOptions
from tasks.settings import Settings


def source_options(settings: Settings) -> SourceOptions:
    """The options of the catalogue's source. Raises SettingsError."""
    return SourceOptions(
        CsvFormat.parse(settings.catalog_csv), row_limits(settings), ColumnMapping.parse(settings.catalog_columns),
        one_select(settings.catalog_query),
    )  # fmt: skip


def row_limits(settings: Settings) -> RowLimits:
    """Bounds beyond which a row is set aside."""
    return RowLimits(
        settings.max_title_length, settings.max_uri_length, settings.max_price, settings.max_category_depth,
        min(settings.max_pictures, 2**15),  # positions are int16
        settings.text_only,
    )  # fmt: skip
