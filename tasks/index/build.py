"""One template for all shards, then each shard's base segment from it. Built twice from the same input, the same bytes."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.files import FileRef, describe, verify, written_whole
from serving.contract.keys import shard_of
from serving.contract.segments import ROW_COLUMNS, write_index, write_rows
from tasks.catalog.snapshot import product_batches
from tasks.errors import VitrineError
from tasks.index.families import choose_family, lists_for
from tasks.index.vectors import shard_batches
from tasks.progress import Progress


@dataclass(frozen=True)
class IndexConfig:
    """What decides an index's content besides its input."""

    shards: int = 2
    family: str = ""
    """A name of tasks.index.families, or "" to choose by size."""
    sample: int = 200_000
    """Training vectors, taken evenly from all shards."""
    seed: int = 7
    recall_target: float = 0.95


@dataclass(frozen=True)
class Template:
    """A trained, empty index that every shard starts from; `file` is empty for families without training."""

    family: str
    factory: str
    dim: int
    shards: int
    rows: int
    file: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class BuiltShard:
    """A shard's base segment as local files; `sha256` and `bytes` as in the manifest."""

    shard: int
    rows: int
    family: str
    folder: str
    index: dict
    table: dict

    def index_ref(self) -> FileRef:
        return FileRef(**self.index)

    def table_ref(self) -> FileRef:
        return FileRef(**self.table)


def train_template(vectors_uri: str, config: IndexConfig, folder: Path) -> Template:
    """Trains what the family trains on a sample of all shards. Raises VitrineError when there is too little to train on."""
    import faiss

    counts, dim = _counts(vectors_uri, config.shards)
    rows = sum(counts)
    if rows == 0:
        raise VitrineError("no product has a vector, so there is nothing to index; look at the quarantine of the embedding step")
    family = choose_family(max(counts), config.family)
    factory = family.factory(dim, lists_for(max(counts)))
    if not family.trained:
        return Template(family.name, factory, dim, config.shards, rows)
    sample = _sample(vectors_uri, config, counts)
    least = family.per_list * lists_for(max(counts)) if family.per_list else 256
    if len(sample) < least:
        raise VitrineError(
            f"{factory} needs at least {least} training vectors and there are {len(sample)}: use the family flat for so few"
        )
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(sample)
    path = folder / "template.faiss"
    write_index(path, index)
    return Template(family.name, factory, dim, config.shards, rows, str(path), describe(path, path.name).sha256)


def build_shard(
    vectors_uri: str, snapshot_uri: str, template: Template, shard: int, folder: Path, extra_columns: tuple[str, ...] = ()
) -> BuiltShard:
    """The base segment of a shard, in `folder`: position i of the index is row i of the table, both in order of key.

    What was built whole by an attempt before is verified and kept.
    """
    done = folder / "built.json"
    if done.is_file():
        kept = BuiltShard(**json.loads(done.read_text()))
        verify(folder / kept.index_ref().path, kept.index_ref())
        verify(folder / kept.table_ref().path, kept.table_ref())
        return kept
    index = _empty(template)
    keys = []
    total = _counts(vectors_uri, template.shards)[0][shard]
    with Progress(f"add vectors, shard {shard}", total, "vectors") as progress:
        for block, vectors in shard_batches(vectors_uri, shard):
            _check(vectors, block, template.dim)
            index.add(vectors)
            keys.append(block)
            progress.add(len(block))
    table = _rows(snapshot_uri, np.concatenate(keys) if keys else np.zeros(0, np.int64), shard, template.shards)
    folder.mkdir(parents=True, exist_ok=True)
    faiss_path, rows_path = folder / f"base-{shard:05d}.faiss", folder / f"base-{shard:05d}.parquet"
    write_index(faiss_path, index)
    write_rows(rows_path, table)
    built = BuiltShard(
        shard,
        len(table),
        template.family,
        str(folder),
        describe(faiss_path, faiss_path.name).model_dump(),
        describe(rows_path, rows_path.name).model_dump(),
    )
    with written_whole(done) as path:
        path.write_text(json.dumps(asdict(built)))
    return built


def _empty(template: Template):  # type: ignore[no-untyped-def]  # a FAISS index
    import faiss

    if not template.file:
        return faiss.index_factory(template.dim, template.factory, faiss.METRIC_INNER_PRODUCT)
    path = Path(template.file)
    verify(path, FileRef(path=path.name, sha256=template.sha256, bytes=path.stat().st_size))
    return faiss.read_index(str(path))


def _check(vectors: np.ndarray, keys: np.ndarray, dim: int) -> None:
    if vectors.shape[1] != dim:
        raise VitrineError(
            f"vectors of dimension {vectors.shape[1]}, the template has {dim}: embeddings of two encoders are mixed"
        )
    bad = ~np.isfinite(vectors).all(axis=1) | (np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-2)
    if bad.any():
        raise VitrineError(f"{int(bad.sum())} vectors are NaN or not of unit length, the first that of key {keys[bad][0]}")


def _rows(snapshot_uri: str, keys: np.ndarray, shard: int, shards: int) -> pa.Table:
    """The row table of a shard: the snapshot's rows with these keys, in their order."""
    parts = []
    for batch in product_batches(snapshot_uri):
        table = pa.Table.from_batches([batch])
        parts.append(table.filter(pa.array(shard_of(table["key"].to_numpy(), shards) == shard)))
    table = pa.concat_tables(parts).combine_chunks()
    carried = [n for n in table.column_names if n not in ROW_COLUMNS and n not in ("description", "priority")]
    table = table.select([*ROW_COLUMNS, *carried])
    places = pc.index_in(pa.array(keys), table["key"])
    if places.null_count:
        lost = keys[pc.is_null(places).to_numpy(zero_copy_only=False)][0]
        raise VitrineError(f"a vector has key {lost}, which is not in the snapshot {snapshot_uri}: it belongs to another one")
    return table.take(places).combine_chunks()


def _counts(vectors_uri: str, shards: int) -> tuple[list[int], int]:
    """Vectors per shard, and their dimension."""
    import pyarrow.parquet as pq

    from tasks import storage
    from tasks.index.vectors import shard_uri

    counts, dim = [], 0
    for shard in range(shards):
        total = 0
        for uri in storage.listing(shard_uri(vectors_uri, shard), ".parquet"):
            fs, path = storage.filesystem(uri)
            with fs.open_input_file(path) as stream:
                file = pq.ParquetFile(stream)
                total += file.metadata.num_rows
                dim = file.schema_arrow.field("vector").type.list_size
        counts.append(total)
    return counts, dim


def _sample(vectors_uri: str, config: IndexConfig, counts: list[int]) -> np.ndarray:
    """About `config.sample` vectors from all shards, chosen by seed."""
    share = min(1.0, config.sample / max(sum(counts), 1))
    rng = np.random.default_rng(config.seed)
    parts = []
    for shard in range(config.shards):
        for _, vectors in shard_batches(vectors_uri, shard):
            parts.append(vectors[rng.random(len(vectors)) < share])
    return np.concatenate(parts)
