"""Catalogue sources, one module each: SQLite, PostgreSQL, and folders of CSV or Parquet. All stream Arrow batches."""

from tasks.catalog.sources.open import open_source
from tasks.catalog.sources.source import Source, SourceOptions

__all__ = ["Source", "SourceOptions", "open_source"]
