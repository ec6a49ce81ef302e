"""A small shop whose products have one to eight pictures each: snapshot, shard vectors, and a brute-force oracle over products."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.cluster.shard_set import ShardSearcher, offsets
from serving.contract.files import sha256_file
from serving.contract.keys import product_keys, shard_of
from serving.contract.manifest import IndexManifest
from serving.contract.segments import PICTURES
from serving.index.searcher import Searcher
from serving.ranking.ranker import RankerConfig
from tasks.catalog.snapshot import MANIFEST
from tests.index.shop import SHARDS, Shop, make_shop

MOST = 8


@dataclass(frozen=True, repr=False)
class Pictured:
    """Pictures in order of product and position: `product` (n,) int64 keys, `position` (n,) int16, unit `vectors` (n, d) float32."""

    product: np.ndarray
    position: np.ndarray
    vectors: np.ndarray

    def of(self, keys: np.ndarray) -> "Pictured":
        mine = np.isin(self.product, keys)
        return Pictured(self.product[mine], self.position[mine], self.vectors[mine])

    def without(self, keys: np.ndarray) -> "Pictured":
        return self.of(np.setdiff1d(self.product, keys))

    def table(self) -> pa.Table:
        """As PICTURES, each content's hash made up from its vector."""
        shas = [v.tobytes()[:32] for v in self.vectors]
        return pa.table([self.product, self.position, pa.array(shas, pa.binary(32))], schema=PICTURES)


def join(parts: list[Pictured]) -> Pictured:
    whole = [np.concatenate([getattr(p, name) for p in parts]) for name in ("product", "position", "vectors")]
    order = np.lexsort((whole[1], whole[0]))
    return Pictured(*(values[order] for values in whole))


def draw(rng: np.random.Generator, keys: np.ndarray, d: int, most: int = MOST, mains: float = 0.9) -> Pictured:
    """1..`most` pictures of each product around a centre of its own, a tenth without a usable main one, some twice the same."""
    product, position, vectors = [], [], []
    for key in keys:
        count = int(rng.integers(1, most + 1))
        places = list(range(count)) if count == 1 or rng.random() < mains else list(range(1, count))
        own = rng.standard_normal(d) + rng.choice([0.1, 0.6, 2.0]) * rng.standard_normal((len(places), d))
        if len(places) > 2 and rng.random() < 0.2:
            own[2] = own[0]
        product += [key] * len(places)
        position += places
        vectors.append(own)
    # What the embedding step stores is float16: the oracle sees the same numbers.
    x = np.concatenate(vectors) if vectors else np.zeros((0, d))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return join([Pictured(np.array(product, np.int64), np.array(position, np.int16), x)])


def make_pictured(folder: Path, n: int = 300, d: int = 32, seed: int = 5, most: int = MOST) -> tuple[Shop, Pictured]:
    """The shop of `n` products, and all usable pictures of theirs; snapshot and shard vectors lie in its folder."""
    shop = make_shop(folder, n, d)
    pictures = draw(np.random.default_rng(seed), shop.keys, d, most)
    uris = {k: [f"images/{i}-{p}.jpg" for p in range(1, most)] for i, k in zip(shop.ids, shop.keys.tolist(), strict=True)}
    record = Path(shop.snapshot.uri) / MANIFEST
    text = record.read_text()
    for part in Path(shop.snapshot.uri).glob("part-*.parquet"):
        before, table = sha256_file(part), pq.read_table(part)
        images = pa.array([uris[key] for key in table["key"].to_pylist()], pa.list_(pa.string()))
        pq.write_table(table.append_column("images", images), part)
        text = text.replace(before, sha256_file(part))
    record.write_text(text)
    vectors = folder / "pictures"
    write_pictures(vectors, pictures, SHARDS)
    return replace(shop, vectors_uri=str(vectors)), pictures


def write_pictures(folder: Path, pictures: Pictured, shards: int) -> None:
    """vectors/shard=<i>/part-00000.parquet as the embedding step leaves them, with `position` where some is not 0."""
    several = bool(pictures.position.any())
    for shard in range(shards):
        mine = shard_of(pictures.product, shards) == shard
        flat = pa.array(pictures.vectors[mine].astype(np.float16).reshape(-1))
        table = pictures.table().filter(pa.array(mine))
        columns = {
            "key": table["product"],
            "image_sha256": table["image_sha256"],
            "vector": pa.FixedSizeListArray.from_arrays(flat, pictures.vectors.shape[1]),
        } | ({"position": table["position"]} if several else {})
        path = folder / f"shard={shard}"
        path.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path / "part-00000.parquet")


def best_products(
    pictures: Pictured, xq: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, list[dict[int, set[int]]]]:
    """The oracle: similarities (nq, k) of the k best products, -inf where there are fewer; and by query, of each product the positions
    of its best pictures. `allowed`: keys that may be found."""
    chosen = pictures if allowed is None else pictures.of(allowed)
    keys, owner = np.unique(chosen.product, return_inverse=True)
    similarity = xq @ chosen.vectors.T
    best = np.full((len(xq), len(keys)), -np.inf, np.float32)
    for query in range(len(xq)):
        np.maximum.at(best[query], owner, similarity[query])
    matched = [
        {
            int(key): set(chosen.position[(owner == n) & (similarity[query] >= best[query, n] - 1e-5)].tolist())
            for n, key in enumerate(keys)
        }
        for query in range(len(xq))
    ]
    falling = -np.sort(-best, axis=1)[:, :k]
    return np.pad(falling, ((0, 0), (0, k - falling.shape[1])), constant_values=-np.inf), matched


def product_ids(numbers: range) -> np.ndarray:
    return product_keys(f"P{n:05d}" for n in numbers)


def shards_apart(manifest: IndexManifest, folder: Path) -> list[ShardSearcher]:
    """Each of the two shards of a version as a shard process searches it."""
    starts = offsets(manifest)
    return [
        ShardSearcher(Searcher.open(manifest, lambda ref: folder / ref.path, shard=shard), starts[shard], RankerConfig())
        for shard in range(2)
    ]
