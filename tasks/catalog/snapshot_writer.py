"""Writes the parts of a snapshot, with a journal from which a killed attempt is resumed."""

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import storage
from tasks.catalog.product_pictures import IMAGES, further_count, with_further
from tasks.catalog.schema import PRODUCT_SCHEMA, UnusableRow
from tasks.catalog.values import TYPES

log = logging.getLogger(__name__)

JOURNAL = "_journal.json"
UNUSABLE = "unusable-"
UNUSABLE_SCHEMA = pa.schema([(name, pa.string()) for name in ("product_id", "column", "problem", "sentence")])
BATCH_ROWS = 50_000
FURTHER, LEFT_OUT, TITLES = "further_pictures", "pictures_left_out", "titles"
"""What the entry of a part counts where there are any: further pictures, those of its products that were left out, and products that
name no picture."""


class SnapshotWriter:
    """Writes parts and a journal of their content; resumes from the journal of a killed attempt."""

    def __init__(self, uri: str, moment: str, started: str) -> None:
        self.uri, self.moment, self.started = uri, moment, started
        self.files: list[dict[str, Any]] = []
        self.content: list[str] = []
        self.unusable: list[dict[str, str]] = []
        self.last_id = ""
        self._take_over()
        kept = {storage.join(uri, f["name"]) for f in self.files}
        for leftover in storage.list_files(uri):
            if leftover not in kept and not leftover.endswith(f"/{JOURNAL}"):
                storage.delete(leftover)

    def _take_over(self) -> None:
        journal = storage.join(self.uri, JOURNAL)
        if not storage.exists(journal):
            return
        found = storage.read_json(journal)
        if self.moment and found["moment"] == self.moment:
            self.files, self.content = found["files"], found["content"]
            self.started, self.last_id = found["started"], found["last_id"]
            self.unusable = found.get("unusable", [])
            log.info("%s: resuming after %d parts (%s)", self.uri, len(self.files), self.last_id)
        else:
            log.info("%s: the catalogue changed since the copy was interrupted; starting over", self.uri)

    @property
    def rows(self) -> int:
        """Number of products written so far."""
        return sum(f["rows"] for f in self.files if f["name"].startswith("part-"))

    def write_products(self, table: pa.Table) -> None:
        """Writes a part of products; its column LEFT_OUT, if there is one, is summed up and not written."""
        counts: dict[str, int] = {}
        if LEFT_OUT in table.column_names:
            counts[LEFT_OUT] = pc.sum(table[LEFT_OUT]).as_py() or 0
            table = table.drop_columns([LEFT_OUT])
        table = with_further(table, PRODUCT_SCHEMA.names)
        counts[FURTHER] = further_count(table)
        counts[TITLES] = pc.sum(pc.equal(table["image_uri"], "")).as_py() or 0
        self.write("part", table, {name: count for name, count in counts.items() if count})

    def count(self, name: str) -> int:
        """Sum of FURTHER, LEFT_OUT or TITLES over the parts written so far."""
        return sum(file.get(name, 0) for file in self.files)

    def write(self, kind: str, table: pa.Table, counts: dict[str, int] | None = None) -> None:
        number = sum(f["name"].startswith(f"{kind}-") for f in self.files)
        name = f"{kind}-{number:05d}.parquet"
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue()
        storage.write_bytes(storage.join(self.uri, name), data)
        digest = hashlib.sha256(data).hexdigest()
        self.files.append({"name": name, "rows": len(table), "sha256": digest, "bytes": len(data)} | (counts or {}))
        if f"{kind}-" != UNUSABLE:
            self.content.append(_content(table))
        if kind == "part":
            self.last_id = table["product_id"][-1].as_py()
            behind = [row for row in self.unusable if row["product_id"] <= self.last_id]  # the others are read again
            record = {"moment": self.moment, "started": self.started, "last_id": self.last_id, "unusable": behind}
            storage.write_json(storage.join(self.uri, JOURNAL), record | {"files": self.files, "content": self.content})

    def set_aside(self, rows: list[UnusableRow]) -> None:
        self.unusable += [
            {"product_id": r.product_id, "column": r.column, "problem": r.problem, "sentence": r.sentence} for r in rows
        ]

    def content_sha256(self) -> str:
        return hashlib.sha256("".join(self.content).encode()).hexdigest()

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Columns of the products written so far."""
        for file in self.files:
            if file["name"].startswith("part-"):
                yield from part_batches(self.uri, file, columns)


def part_batches(uri: str, file: dict, columns: list[str] | None, further: bool = False) -> Iterator[pa.RecordBatch]:
    """Rows of a part, after verifying its checksum; with `further`, one without the column IMAGES has it, empty."""
    data = storage.read_verified(storage.join(uri, file["name"]), file["sha256"])
    fill = further and FURTHER not in file and (columns is None or IMAGES in columns)
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(BATCH_ROWS, columns=columns):
        if fill:
            place = sum(name in PRODUCT_SCHEMA.names for name in batch.schema.names)
            batch = batch.add_column(place, IMAGES, pa.array([[]] * batch.num_rows, TYPES["uris"]))
        yield batch


def _content(table: pa.Table) -> str:
    """sha256 over every value, column by column; parts are cut at fixed row counts, so equal rows give equal hashes."""
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(f"\n{name}:{table[name].type}\n".encode())
        sink = pa.BufferOutputStream()
        column = table.select([name]).combine_chunks()
        with pa.ipc.new_stream(sink, column.schema.remove_metadata()) as stream:
            stream.write_table(column)
        digest.update(sink.getvalue())
    return digest.hexdigest()
