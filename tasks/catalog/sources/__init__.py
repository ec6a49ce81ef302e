"""Catalogue sources, one module each: SQLite, PostgreSQL, folders of CSV or Parquet, Parquet, Delta Lake and Iceberg tables.

All stream Arrow batches.
"""

from tasks.catalog.sources.open import open_source
from tasks.catalog.sources.source import Source, SourceOptions

__all__ = ["Source", "SourceOptions", "open_source"]
