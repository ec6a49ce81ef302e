"""Where a catalogue is read from, one module each: SQLite, PostgreSQL, a folder of CSV or Parquet. All are streams of Arrow batches."""

from tasks.catalog.sources.open import open_source
from tasks.catalog.sources.source import Source

__all__ = ["Source", "open_source"]
