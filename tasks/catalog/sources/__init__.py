"""Catalogue sources, one module each: SQLite, PostgreSQL, and folders of CSV or Parquet. All stream Arrow batches."""

from tasks.catalog.sources.open import open_source
from tasks.catalog.sources.source import Source

__all__ = ["Source", "open_source"]
