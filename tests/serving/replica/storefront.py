"""A tiny whole release in a folder: drawn pictures, a real encoder file, real segments, golden answers."""

import hashlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from serving.contract.counts import Counts
from serving.contract.encoder import EncoderFolder
from serving.contract.files import FileRef, atomic_write, describe
from serving.contract.keys import product_keys
from serving.contract.manifest import EncoderRef, IndexManifest, SnapshotRef
from serving.contract.palette import palette
from serving.contract.preprocess import decode
from serving.index.searcher import Searcher
from tasks.catalog.snapshot import take_snapshot
from tasks.index.build import build_shard
from tasks.index.choice import IndexConfig
from tasks.index.template import train_template
from tasks.index.version_manifest import EMPTY_SHA, base_segment, with_golden
from tests.index.shop import write_vectors
from tests.tiny import tiny_encoder

KINDS = ("Mugs", "Shoes", "Bags", "Lamps")
BRANDS = ("Norda", "Vela", "Kiso")
SHARDS = 2


@dataclass(frozen=True)
class Storefront:
    """`release` is the folder that serves, `photos` a shopper's picture by product id, `vectors` (n, d) in the order of `ids`."""

    release: Path
    catalog: Path
    ids: list[str]
    photos: dict[str, bytes]
    vectors: dict[str, np.ndarray]

    def point(self, **aliases: str) -> None:
        """Moves aliases, as a promotion does."""
        path = self.release / "aliases.json"
        now = json.loads(path.read_text()) if path.is_file() else {}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(now | aliases))

    def manifest(self, version: str) -> dict:
        return json.loads((self.release / version / "manifest.json").read_text())

    def copy(self, folder: Path) -> "Storefront":
        """The same in a folder of its own, to be damaged."""
        shutil.copytree(self.release, folder)
        return Storefront(folder, self.catalog, self.ids, self.photos, self.vectors)


def draw(kind: int, seed: int, size: int = 96, shopper: bool = False) -> bytes:
    """A made-up product as JPEG bytes: a coloured shape; a shopper's photo of it is shifted and on another ground."""
    rng = np.random.default_rng(seed)
    colour = tuple(int(c) for c in rng.integers(40, 235, 3))
    picture = Image.new("RGB", (size, size), (205, 200, 190) if shopper else (250, 250, 250))
    pen = ImageDraw.Draw(picture)
    a, b = (size // 5, 4 * size // 5)
    a, b = (a + 3, b + 3) if shopper else (a, b)
    if kind == 0:
        pen.rectangle((a, a, b, b), fill=colour)
    elif kind == 1:
        pen.polygon([(a, b), (b, b), (b, a + size // 3), (a, a + size // 2)], fill=colour)
    elif kind == 2:
        pen.ellipse((a, a, b, b), fill=colour)
    else:
        pen.polygon([(size // 2, a), (b, b), (a, b)], fill=colour)
    stripe = tuple(int(c) for c in rng.integers(0, 255, 3))
    y = int(rng.integers(a, b - 8))
    pen.rectangle((a + 8, y, b - 8, y + 6), fill=stripe)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80 if shopper else 92)
    return stream.getvalue()


def make_storefront(
    folder: Path, n: int = 48, versions: tuple[int, ...] = (0, 1), words: bool = False, later: int = 0, palettes: bool = False
) -> Storefront:
    """A release folder with versions "1", "2", …, each with an encoder of another seed; `live` and `blue` name "1".

    The `later` last products are new in version "2". With `palettes` the ranker compares colours.
    """
    catalog = folder / "catalog"
    (catalog / "images").mkdir(parents=True)
    ids = [f"P{i:03d}/{KINDS[i % 4]}" for i in range(n)]
    lines = ["product_id,title,image,brand,category,price,currency,in_stock"]
    for i, product_id in enumerate(ids):
        (catalog / "images" / f"{i}.jpg").write_bytes(draw(i % 4, i))
        kind, brand = KINDS[i % 4], BRANDS[i % 3]
        lines.append(f"{product_id},{brand} {kind[:-1]} {i},images/{i}.jpg,{brand},Home > {kind},{5 + i},EUR,{i % 5 != 0}")
    (catalog / "products.csv").write_text("\n".join(lines) + "\n")
    snapshot = take_snapshot(str(catalog), str(folder / "snapshots"), "one")
    photos = {p: draw(i % 4, i, shopper=True) for i, p in enumerate(ids)}
    release = folder / "release"
    vectors: dict[str, np.ndarray] = {}
    for number, seed in enumerate(versions, start=1):
        made = folder / f"encoder-{seed}"
        tiny_encoder(made, seed=seed, words=words)
        encoders = EncoderFolder(made)
        encoder = encoders.open("student.fp32")
        reference = describe(made / "encoder.json", "encoder/encoder.json")
        shutil.copytree(made, release / "encoders" / reference.sha256)
        pixels = [decode((catalog / "images" / f"{i}.jpg").read_bytes(), encoders.manifest.preprocess) for i in range(n)]
        xb = encoder.encode(np.stack(pixels))
        vectors[str(number)] = xb
        uri = folder / f"vectors-{number}"
        have = n - later if number == 1 else n
        colours = np.stack([palette(p) for p in pixels[:have]]) if palettes else None
        write_vectors(uri, product_keys(ids[:have]), xb[:have], SHARDS, colours)
        work = folder / f"index-{number}"
        template = train_template(str(uri), IndexConfig(shards=SHARDS, family="flat"), work)
        built = [build_shard(str(uri), snapshot.uri, template, s, work / f"shard-{s}") for s in range(SHARDS)]
        segments = [base_segment(b, "", f"shard-{b.shard}") for b in built]
        print_ = encoder.fingerprint
        manifest = IndexManifest(
            id=f"made-{number}", created_at="2026-01-01T00:00:00+00:00",
            encoder=EncoderRef(
                name="tiny", version=str(number), run_id="", manifest=reference, document="student.fp32", document_fingerprint=print_,
                query="student.fp32", query_fingerprint=print_, dim=xb.shape[1],
            ),
            snapshot=SnapshotRef(
                id=snapshot.id, uri=snapshot.uri, rows=n, content_sha256=snapshot.content_sha256, image_root=snapshot.image_root
            ),
            shards=SHARDS, segments=tuple(segments), search={"family": "flat", "candidates": 40},
            counts=Counts(catalogue=n, embedded=have, quarantined=0, indexed=have, servable=have),
            golden=FileRef(path="golden.npz", sha256=EMPTY_SHA, bytes=0),
        )  # fmt: skip
        queries = encoder.encode(np.stack([decode(p, encoders.manifest.preprocess) for p in list(photos.values())[:8]]))
        searcher = Searcher.open(manifest, lambda ref, work=work: work / ref.path)
        manifest = with_golden(manifest, searcher, queries, work, "", "index")
        files = release / "files"
        files.mkdir(parents=True, exist_ok=True)
        for ref in manifest.files():
            shutil.copy(work / ref.path.removeprefix("index/"), files / ref.sha256)
        (release / str(number)).mkdir()
        (release / str(number) / "manifest.json").write_text(manifest.model_dump_json())
    store = Storefront(release, catalog, ids, photos, vectors)
    store.point(blue="1", live="1")
    return store


def corrupt(path: Path) -> None:
    """Flips one byte in the middle of a file; its size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.chmod(0o644)  # a cache is read-only
    path.write_bytes(bytes(data))


def reseal(store: Storefront, version: str, change: dict) -> None:
    """Rewrites a version's manifest with some fields changed."""
    path = store.release / version / "manifest.json"
    path.write_text(json.dumps(store.manifest(version) | change))


def put_file(store: Storefront, data: bytes, name: str) -> FileRef:
    """Adds a file to the release under its sha256."""
    sha = hashlib.sha256(data).hexdigest()
    (store.release / "files" / sha).write_bytes(data)
    return FileRef(path=name, sha256=sha, bytes=len(data))


def tombstones(store: Storefront, version: str, product_ids: list[str]) -> None:
    """Adds a tombstone segment to each shard of a version, for these products."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"key": product_keys(product_ids)}), stream)
    ref = put_file(store, stream.getvalue(), "tombstones.parquet").model_dump()
    segments = store.manifest(version)["segments"]
    more = [
        {"kind": "tombstones", "shard": s, "sequence": 1, "rows": len(product_ids), "family": "", "index": None, "table": ref}
        for s in range(SHARDS)
    ]
    reseal(store, version, {"segments": segments + more})
