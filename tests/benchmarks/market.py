"""A shop of a million products as an exported release, for the proofs of serving: the pipeline's own template, shards, tuning and
golden answers over made-up vectors (tests/benchmarks/vectors.py), and a real image network of the same dimension.

    python -m tests.benchmarks.market [--rows 1000000] [--family ivf_fs_sq8] [--out build/bench]

Built once (minutes) and found again by its name. The image network has random weights: it costs what a trained one costs, and
what its vectors find is meaningless; vector queries are the generator's own and are what recall is measured on.
"""

import argparse
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from serving.contract.counts import Counts
from serving.contract.encoder import EncoderFolder
from serving.contract.files import FileRef, atomic_write, describe
from serving.contract.keys import product_keys, shard_of
from serving.contract.manifest import EncoderManifest, EncoderRef, IndexManifest, SnapshotRef, Variant, fingerprint
from serving.contract.palette import NAMES, PALETTE, PALETTE_TYPE
from serving.contract.preprocess import PreprocessSpec
from serving.contract.segments import fixed_column
from serving.index.searcher import Searcher
from tasks.catalog.snapshot import take_snapshot
from tasks.index.build import build_shard
from tasks.index.choice import IndexConfig
from tasks.index.ground_truth import exact_truth
from tasks.index.template import train_template
from tasks.index.tune import tune
from tasks.index.version_manifest import EMPTY_SHA, base_segment, local_files, with_golden
from tests.benchmarks.vectors import Vectors

DIM, SIZE = 512, 224
NETWORK = "mobilenetv4_conv_small"
"""The quickest student that was measured: what is around it weighs most. The document's own is "resnet50"."""
BLOCK = 50_000
QUERIES = 400
RECALL = 0.95
PHOTOS = 2500
"""More than the caches of candidates and responses hold: asked in turns, no photo is remembered."""
KINDS = ("Mugs", "Plates", "Shoes", "Boots", "Bags", "Belts", "Lamps", "Chairs", "Shelves", "Coats", "Shirts", "Hats")


@dataclass(frozen=True)
class Market:
    """`release` is the folder that serves, `queries` (n, 512) unit float32, `photos` JPEGs of 500 x 500."""

    release: Path
    queries: np.ndarray
    photos: list[bytes]

    def manifest(self) -> IndexManifest:
        return IndexManifest.model_validate_json((self.release / "1" / "manifest.json").read_bytes())


def market(
    out: Path,
    rows: int = 1_000_000,
    family: str = "ivf_fs_sq8",
    preset: str = "hard",
    shards: int = 1,
    recall: float = RECALL,
    network: str = NETWORK,
) -> Market:
    """The release below `out`, tuned to this recall@10; built when it is not there. Version "1" is live in blue."""
    aside = ("" if recall == RECALL else f"-{recall}") + ("" if network == NETWORK else f"-{network}")
    home = out / f"market-{rows}-{family}-{preset}-{shards}-colours{aside}"
    if not (home / "release" / "aliases.json").is_file():
        shutil.rmtree(home, ignore_errors=True)
        _build(home, rows, family, preset, shards, recall, network)
    photos = [p.read_bytes() for p in sorted((home / "photos").iterdir())]
    return Market(home / "release", np.load(home / "queries.npy"), photos)


def _build(home: Path, rows: int, family: str, preset: str, shards: int, recall: float, network: str) -> None:
    work, release = home / "work", home / "release"
    work.mkdir(parents=True)
    ids = [f"P{i:07d}" for i in range(rows)]
    _catalogue(work / "catalog", ids)
    snapshot = take_snapshot(str(work / "catalog"), str(work / "snapshots"), "market")
    world = Vectors(DIM, preset)
    _vectors(work / "vectors", world, product_keys(ids), shards)
    xq = world.queries(QUERIES)
    np.save(home / "queries.npy", xq)
    template = train_template(str(work / "vectors"), IndexConfig(shards=shards, family=family), work)
    built = [build_shard(str(work / "vectors"), snapshot.uri, template, s, work / f"shard-{s}") for s in range(shards)]
    encoder, reference = _encoder(work / "encoder", network)
    shutil.copytree(work / "encoder", release / "encoders" / reference.sha256)
    print_ = encoder.variant(encoder.query).fingerprint
    manifest = IndexManifest(
        id="market", created_at="2026-11-25T00:00:00+00:00",
        encoder=EncoderRef(
            name=encoder.name, version="1", run_id="", manifest=reference, document=encoder.document, document_fingerprint=print_,
            query=encoder.query, query_fingerprint=print_, dim=DIM,
        ),
        snapshot=SnapshotRef(id=snapshot.id, uri=snapshot.uri, rows=rows, content_sha256=snapshot.content_sha256),
        shards=shards, segments=tuple(base_segment(b, "", "files") for b in built), search={"family": family, "candidates": 500},
        counts=Counts(catalogue=rows, embedded=rows, quarantined=0, indexed=rows, servable=rows),
        golden=FileRef(path="golden.npz", sha256=EMPTY_SHA, bytes=0),
    )  # fmt: skip
    files = {p.name: p for s in range(shards) for p in (work / f"shard-{s}").iterdir()} | {"golden.npz": work / "golden.npz"}
    truth = exact_truth(str(work / "vectors"), shards, xq, work)
    tuned = tune(Searcher.open(manifest, local_files(files)), xq, family, recall, truth)
    (home / "tuned.json").write_text(json.dumps(tuned.chosen, indent=1))
    manifest = manifest.model_copy(update={"search": tuned.search})
    manifest = with_golden(manifest, Searcher.open(manifest, local_files(files)), xq, work, "", "files")
    (release / "files").mkdir(exist_ok=True)
    for ref in manifest.files():
        shutil.move(files[Path(ref.path).name], release / "files" / ref.sha256)
    (release / "1").mkdir()
    (release / "1" / "manifest.json").write_text(manifest.model_dump_json())
    _photos(home / "photos")
    shutil.rmtree(work)
    with atomic_write(release / "aliases.json") as path:
        path.write_text(json.dumps({"blue": "1", "live": "1"}))


def _catalogue(folder: Path, ids: list[str]) -> None:
    """products.csv with brands of uneven size, categories of two levels, log-normal prices, one in ten out of stock."""
    folder.mkdir()
    rng, n = np.random.default_rng(3), len(ids)
    kinds = rng.integers(0, len(KINDS), n)
    brands = np.minimum(rng.zipf(1.6, n), 500)
    names = [f"Brand {b:03d} {KINDS[k][:-1]} {i}" for i, (b, k) in enumerate(zip(brands.tolist(), kinds.tolist(), strict=True))]
    table = {
        "product_id": ids, "title": names, "image": [f"images/{i}.jpg" for i in ids], "brand": [f"Brand {b:03d}" for b in brands.tolist()],
        "category": [f"Home > {KINDS[k]}" for k in kinds.tolist()], "price": np.round(rng.lognormal(3, 0.8, n), 2),
        "currency": ["EUR"] * n, "in_stock": (rng.random(n) < 0.9).astype(np.int8),
    }  # fmt: skip
    pacsv.write_csv(pa.table(table), folder / "products.csv")


def _vectors(folder: Path, world: Vectors, keys: np.ndarray, shards: int) -> None:
    """The shards' vectors in order of key, as the embedding step leaves them, written in blocks."""
    keys = np.sort(keys)
    kind = pa.list_(pa.float16(), DIM)
    schema = pa.schema([("key", pa.int64()), ("image_sha256", pa.binary(32)), (PALETTE, PALETTE_TYPE), ("vector", kind)])
    rng = np.random.default_rng(4)
    writers = []
    for shard in range(shards):
        (folder / f"shard={shard}").mkdir(parents=True)
        writers.append(pq.ParquetWriter(folder / f"shard={shard}" / "part-00000.parquet", schema))
    for start in range(0, len(keys), BLOCK):
        block = keys[start : start + BLOCK]
        vectors = world.base(len(block)).astype(np.float16)
        palettes = (255 * rng.dirichlet(np.full(len(NAMES), 0.3), len(block))).round().astype(np.uint8)
        for shard, writer in enumerate(writers):
            mine = shard_of(block, shards) == shard
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[mine].reshape(-1)), DIM)
            images = pa.array([b"\0" * 32] * int(mine.sum()), pa.binary(32))
            writer.write_table(pa.table([block[mine], images, fixed_column(palettes[mine]), column], schema=schema))
    for writer in writers:
        writer.close()


def _encoder(folder: Path, name: str) -> tuple[EncoderManifest, FileRef]:
    """An encoder version whose one tower is a network of timm's, exported by the pipeline's own code."""
    import timm
    import torch

    from tasks.encoder.export.onnx_graph import ImageGraph, write_onnx
    from tasks.encoder.train.timm_models import PLAIN_MEAN, PLAIN_STD
    from tasks.encoder.train.towers import ImageEncoder

    folder.mkdir()
    spec = PreprocessSpec(size=SIZE, fit="crop")
    path = folder / "student.fp32.onnx"
    torch.manual_seed(5)
    network = timm.create_model(name, num_classes=DIM)
    _settle(network)
    graph = ImageGraph(ImageEncoder(network.eval(), PLAIN_MEAN, PLAIN_STD))
    write_onnx(graph, torch.zeros((2, SIZE, SIZE, 3), dtype=torch.uint8), path)
    print_ = fingerprint(describe(path, path.name).sha256, spec)
    variant = Variant(file=describe(path, path.name), fingerprint=print_)
    pixels = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.inference_mode():
        golden = graph(torch.from_numpy(pixels)).numpy()
    np.savez(folder / "golden.npz", **{"pixels": pixels, "student.fp32": golden})
    manifest = EncoderManifest(
        name="market", dim=DIM, preprocess=spec, towers={"student": {"fp32": variant}}, document="student.fp32", query="student.fp32",
        golden=describe(folder / "golden.npz", "golden.npz"),
    )  # fmt: skip
    (folder / "encoder.json").write_text(manifest.model_dump_json())
    EncoderFolder(folder).open("student.fp32")
    return manifest, describe(folder / "encoder.json", "encoder/encoder.json")


def _settle(network: Any) -> None:
    """Gives the normalising layers the statistics of pictures: with none, a random network gives every picture the same vector."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for _ in range(4):
            soft = torch.nn.functional.interpolate(torch.randn(16, 3, 12, 12), size=SIZE, mode="bicubic")
            network(soft)


def _photos(folder: Path) -> None:
    """JPEGs of 500 x 500 and about 25 kB: soft shapes with some grain, as photos compress."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(9)
    for n in range(PHOTOS):
        soft = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((500, 500), Image.Resampling.BICUBIC)
        grain = np.asarray(soft).astype(np.int16) + rng.normal(0, 5, (500, 500, 1)).astype(np.int16)
        stream = io.BytesIO()
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=75)
        (folder / f"{n:03d}.jpg").write_bytes(stream.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--family", default="ivf_fs_sq8")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    made = market(args.out, args.rows, args.family)
    sizes = np.array([len(p) for p in made.photos])
    print(made.release, made.manifest().search, f"photos {sizes.mean() / 1e3:.1f} kB")


if __name__ == "__main__":
    main()
