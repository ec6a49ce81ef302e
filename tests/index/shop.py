"""A small embedded shop: a real snapshot and real shard vectors, without pictures or an encoder."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from serving.contract.counts import Counts
from serving.contract.files import FileRef
from serving.contract.keys import product_keys, shard_of
from serving.contract.manifest import EncoderRef, IndexManifest, Scalar, SnapshotRef
from serving.contract.palette import PALETTE
from serving.contract.segments import fixed_column
from serving.index.searcher import Searcher
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.index.build import BuiltShard, build_shard
from tasks.index.choice import IndexConfig
from tasks.index.template import Template, train_template
from tasks.index.version_manifest import EMPTY_SHA, base_segment

SHARDS = 2
EMPTY = FileRef(path="golden.npz", sha256=EMPTY_SHA, bytes=0)


@dataclass(frozen=True)
class Shop:
    """`ids` (n,), `keys` (n,) int64 and unit `vectors` (n, d) float32 in one order; the files below `folder`."""

    folder: Path
    snapshot: Snapshot
    vectors_uri: str
    ids: list[str] = field(repr=False)
    keys: np.ndarray = field(repr=False)
    vectors: np.ndarray = field(repr=False)
    shards: int

    @property
    def encoder(self) -> EncoderRef:
        return encoder_ref(self.vectors.shape[1])


def encoder_ref(d: int) -> EncoderRef:
    return EncoderRef(
        name="made up", version="1", run_id="", manifest=FileRef(path="encoder.json", sha256=EMPTY_SHA, bytes=0),
        document="student.fp32", document_fingerprint="d" * 64, query="student.fp32", query_fingerprint="d" * 64, dim=d,
    )  # fmt: skip


def clustered(rng: np.random.Generator, n: int, d: int, clusters: int = 40, spread: float = 0.5) -> np.ndarray:
    """Unit vectors (n, d) float32 around a few centres, as products of a few kinds are."""
    centres = rng.standard_normal((clusters, d))
    x = centres[rng.integers(0, clusters, n)] + spread * rng.standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def make_shop(folder: Path, n: int = 600, d: int = 32, shards: int = SHARDS, seed: int = 3) -> Shop:
    rng = np.random.default_rng(seed)
    catalog = folder / "catalog"
    catalog.mkdir(parents=True)
    ids = [f"P{i:05d}" for i in range(n)]
    products = {
        "product_id": ids,
        "title": [f"Thing {i}" for i in range(n)],
        "image": [f"images/{i}.jpg" for i in range(n)],
        "brand": [f"Brand {i % 7}" for i in range(n)],
        "price": [float(i) for i in range(n)],
        "colour": [("red", "green")[i % 2] for i in range(n)],
    }
    pacsv.write_csv(pa.table(products), catalog / "products.csv")
    snapshot = take_snapshot(str(catalog), str(folder / "snapshots"), "one")
    # What the embedding step stores is float16: the oracle sees the same numbers.
    vectors = clustered(rng, n, d).astype(np.float16).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = product_keys(ids)
    uri = folder / "vectors"
    write_vectors(uri, keys, vectors, shards)
    return Shop(folder, snapshot, str(uri), ids, keys, vectors, shards)


def write_vectors(folder: Path, keys: np.ndarray, vectors: np.ndarray, shards: int, palettes: np.ndarray | None = None) -> None:
    """vectors/shard=<i>/part-00000.parquet as the embedding step leaves them; `palettes` (n, 13) uint8."""
    for shard in range(shards):
        mine = np.flatnonzero(shard_of(keys, shards) == shard)
        mine = mine[np.argsort(keys[mine])]
        flat = pa.array(vectors[mine].astype(np.float16).reshape(-1))
        table = pa.table(
            {
                "key": keys[mine],
                "image_sha256": pa.array([b"\0" * 32] * len(mine), pa.binary(32)),
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )
        if palettes is not None:
            table = table.append_column(PALETTE, fixed_column(palettes[mine]))
        path = folder / f"shard={shard}"
        path.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path / "part-00000.parquet")


def build_all(shop: Shop, folder: Path, family: str = "flat", **config: int) -> tuple[Template, list[BuiltShard]]:
    template = train_template(shop.vectors_uri, IndexConfig(shards=shop.shards, family=family, **config), folder)
    uri = shop.snapshot.uri
    return template, [build_shard(shop.vectors_uri, uri, template, s, folder / f"shard-{s}") for s in range(shop.shards)]


def manifest_of(shop: Shop, built: list[BuiltShard], search: dict[str, Scalar] | None = None) -> IndexManifest:
    """A manifest whose file paths are relative to `locate_in`'s folders."""
    segments = [base_segment(b, "", f"shard-{b.shard}") for b in built]
    n = sum(s.rows for s in segments)
    s = shop.snapshot
    return IndexManifest(
        id="v1", created_at="2026-01-01T00:00:00+00:00", encoder=shop.encoder,
        snapshot=SnapshotRef(id=s.id, uri=s.uri, rows=s.rows, content_sha256=s.content_sha256), shards=shop.shards,
        segments=tuple(segments), search=search or {"family": "flat"},
        counts=Counts(catalogue=s.rows, embedded=n, quarantined=s.rows - n, indexed=n, servable=n),
        golden=EMPTY,
    )  # fmt: skip


def open_shop(shop: Shop, folder: Path, family: str = "flat", search: dict[str, Scalar] | None = None) -> Searcher:
    _, built = build_all(shop, folder, family)
    return Searcher.open(manifest_of(shop, built, search), lambda ref: folder / ref.path)


def brute_force(vectors: np.ndarray, xq: np.ndarray, k: int, live: np.ndarray | None = None) -> np.ndarray:
    """Similarities (nq, k) of the k nearest live vectors, best first, -inf where there are fewer."""
    similarity = xq @ vectors.T
    if live is not None:
        similarity[:, ~live] = -np.inf
    best = -np.sort(-similarity, axis=1)[:, :k]
    return np.pad(best, ((0, 0), (0, k - best.shape[1])), constant_values=-np.inf)
