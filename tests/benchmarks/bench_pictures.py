"""Several pictures a product: exact accounts and answers, what an hour costs, and what more pictures are worth.

    python -m tests.benchmarks.bench_pictures [--products 20000] [--changed 100 400] [--catalog CATALOG] [--out build/bench]

A drawn catalogue of products with one to eight pictures each, some of which cannot be used, goes by the pipeline's own steps, in this
process, from its folder to an index version (flat). Its counts are compared with what was drawn, and its answers with a brute-force
search over products. Then hours follow in each of which one picture of so many products is replaced: counts and answers again, the time,
and the bytes that the version added.

CATALOG is a folder with labelled photos (products.csv, photos.csv): Recall@1 and @10 of its held-out photos with its train photos as
further pictures of their products, by EfficientNet-Lite0 as it is; and of products asked by their own picture or the mean of theirs.
Prints tables, writes pictures.json.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.contract.manifest import CANDIDATES, IndexManifest
from serving.index.searcher import Searcher
from tasks.catalog.changes.event import Event, upsert
from tasks.catalog.changes.source import open_changes
from tasks.index.vectors import shard_batches, shard_pictures
from tasks.pipelines import common, drain_changes, refresh_index
from tasks.registry import ENCODER_MODEL, INDEX_MODEL
from tests.benchmarks.picture_recall import measure_grocery
from tests.catalog.changes.refreshed import own_mlflow
from tests.catalogs import picture, write_table
from tests.index.pictured import Pictured, best_products, join
from tests.pipelines import steps
from tests.registered import Shop
from tests.servers import make_mlflow_tables

MOST, QUERIES, PHOTOS = 8, 40, 60
SETTINGS = {
    "SERVING_URLS": "", "CHANGES": "outbox:", "P99_MS": "60000", "INDEX_FAMILY": "flat", "MOST_QUARANTINED": "0.05",
    "MIN_HELD_OUT": "20", "ENOUGH_PHOTOS": "0", "REFRESH_CHANGES": "100000",
}  # fmt: skip


@dataclass
class Drawn:
    """A drawn shop: the names of each product's pictures, and which names are broken files."""

    folder: Path
    pictures: dict[str, list[str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    made: int = 0

    def draw(self, broken: bool = False) -> str:
        """A new picture file of its own content; gives its name."""
        name = f"images/{self.made:06d}.jpg"
        self.made += 1
        if broken:
            (self.folder / name).write_bytes(f"no picture: {name}".encode())
            self.broken.add(name)
        else:
            picture(self.folder / name, self.made, side=24)
        return name

    def row(self, product: str) -> dict[str, str]:
        main, *further = self.pictures[product]
        return {
            "product_id": product,
            "title": f"product {product}",
            "image": main,
            "images": json.dumps(further) if further else "",
        }

    def truth(self) -> dict[str, int]:
        """What the manifest must count."""
        usable = {p: sum(n not in self.broken for n in names) for p, names in self.pictures.items()}
        return {
            "catalogue": len(usable), "embedded": sum(n > 0 for n in usable.values()), "quarantined": sum(n == 0 for n in usable.values()),
            "pictures": sum(usable.values()), "quarantined_pictures": sum(map(len, self.pictures.values())) - sum(usable.values()),
        }  # fmt: skip


def draw_shop(folder: Path, products: int, seed: int = 0) -> Drawn:
    """products.csv and photos.csv with their files: of a hundred pictures one is broken, of a thousand products all of one."""
    shop, rng = Drawn(folder), np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    for n in range(products):
        lost = rng.random() < 0.001
        shop.pictures[f"p{n:06d}"] = [shop.draw(lost or rng.random() < 0.01) for _ in range(rng.integers(1, MOST + 1))]
    write_table(folder / "products.csv", [shop.row(p) for p in shop.pictures])
    photos = []
    for product, names in list(shop.pictures.items())[: 2 * PHOTOS : 2]:
        usable = [n for n in names if n not in shop.broken]
        if usable:
            number = int(Path(usable[-1]).stem)
            picture(folder / f"photos/{number}.jpg", number + 1, side=40)
            photos.append({"photo": f"photos/{number}.jpg", "product_id": product, "split": "val"})
    write_table(folder / "photos.csv", photos)
    return shop


def oracle_of(uris: list[str], shards: int) -> Pictured:
    """What runs embedded, the newest last: all pictures of a product are those of the last run that has it."""
    whole: Pictured | None = None
    for uri in uris:
        blocks = [b for s in range(shards) for b in shard_batches(uri, s)]
        keys, vectors = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        table = shard_pictures(uri, range(shards))
        position = np.zeros(len(keys), np.int16) if table is None else table["position"].to_numpy()
        new = Pictured(keys, position, vectors)
        whole = new if whole is None else join([whole.without(np.unique(keys)), new])
    assert whole is not None
    return join([whole])


def check(manifest: IndexManifest, shop: Drawn, oracle: Pictured, locate: Any) -> int:
    """Compares counts with what was drawn, and answers with the oracle; gives the number of answers that differ."""
    counts = {name: getattr(manifest.counts, name) for name in shop.truth()}
    if counts != shop.truth():
        raise SystemExit(f"the manifest counts {counts}, drawn were {shop.truth()}")
    searcher = Searcher.open(manifest, locate)
    assert searcher.live_vectors == len(oracle.product) == counts["pictures"]
    rng, wrong, k = np.random.default_rng(1), 0, min(CANDIDATES, searcher.live_rows)
    xq = oracle.vectors[rng.integers(0, len(oracle.vectors), QUERIES)] + 0.05 * rng.standard_normal(
        (QUERIES, oracle.vectors.shape[1])
    )
    xq = (xq / np.linalg.norm(xq, axis=1, keepdims=True)).astype(np.float32)
    for block in range(0, QUERIES, 8):
        part = xq[block : block + 8]
        truth, matched = best_products(oracle, part, k)
        found = searcher.search(part, k)
        keys = searcher.features.key[found.rows]
        for query in range(len(part)):
            pictures = found.pictures[query] if found.pictures is not None else np.zeros(k, np.int16)
            right = [int(p) in matched[query][int(k)] for k, p in zip(keys[query], pictures, strict=True)]
            same = np.allclose(found.similarity[query], truth[query], atol=2e-4) and len(set(keys[query].tolist())) == k
            wrong += int(not (same and all(right)))
    return wrong


def replaced(shop: Drawn, count: int, hour: int) -> list[Event]:
    """One picture of each of `count` products is another one."""
    rng = np.random.default_rng(100 + hour)
    several = [p for p, names in shop.pictures.items() if len(names) > 1]
    events = []
    for product in rng.choice(several, count, replace=False).tolist():
        names = shop.pictures[product]
        names[int(rng.integers(0, len(names)))] = shop.draw()
        main, *further = names
        events.append(upsert(product, datetime.now(UTC), {"title": f"product {product}", "image": main, "images": further}))
    return events


def refresh(key: str, events: list[Event]) -> tuple[Any, Any, float]:
    """Sends the events and makes the hourly version of them; gives it, what was embedded, and the seconds."""
    chosen = common.settings()
    with open_changes(chosen.changes, chosen.catalog_uri, chosen.home) as source:
        source.send(events)
    began = time.perf_counter()
    plan = drain_changes.drain(key)
    embedded = refresh_index.embed(plan)
    registered = refresh_index.register(plan, embedded)
    refresh_index.acknowledge(plan, registered, embedded)
    refresh_index.publish(registered)
    return registered, embedded.result, time.perf_counter() - began


def measure_shop(home: Path, products: int, hours: list[int]) -> dict[str, Any]:
    """The drawn shop's figures. The environment has its settings."""
    began = time.perf_counter()
    shop = draw_shop(home / "shop", products)
    print(
        f"{products} products with {sum(map(len, shop.pictures.values()))} pictures drawn in {time.perf_counter() - began:.0f} s"
    )
    models = common.registry()
    helper = Shop(home / "tiny-shop", models, products=2)
    models.set_alias(ENCODER_MODEL, "champion", helper.encoder(dim=64))
    began = time.perf_counter()
    made = steps.make_version("base")
    figures: dict[str, Any] = {"base_s": time.perf_counter() - began, "summary": made.summary, "hours": []}
    print(made.summary)
    models.set_alias(INDEX_MODEL, "live", made.version)
    manifest = models.index_manifest(made.version)
    uris = [manifest.embeddings[0].uri]
    wrong = check(manifest, shop, oracle_of(uris, manifest.shards), models.file)
    figures |= {"counts": shop.truth(), "wrong": wrong}
    print(
        f"base: {figures['base_s']:.0f} s, counts as drawn {shop.truth()}, {wrong} of {QUERIES} answers differ from the oracle's"
    )
    for hour, count in enumerate(hours, 1):
        registered, embedded, seconds = refresh(f"hour-{hour}", replaced(shop, count, hour))
        manifest = models.index_manifest(registered.version)
        uris.append(manifest.embeddings[-1].uri)
        wrong = check(manifest, shop, oracle_of(uris, manifest.shards), models.file)
        run = models.version(INDEX_MODEL, registered.version).run_id
        size = sum(f.bytes for s in manifest.segments for f in s.files() if f.run_id == run)
        row = {
            "changed": count,
            "embedded": embedded.embedded_now,
            "vectors": embedded.pictures,
            "s": seconds,
            "bytes": size,
            "wrong": wrong,
        }
        figures["hours"].append(row)
        print(
            f"hour {hour}: {count} pictures replaced, {embedded.embedded_now} embedded, {embedded.pictures} vectors and {size / 2**20:.2f} "
            f"MiB written, {seconds:.1f} s; counts as drawn {shop.truth()}, {wrong} of {QUERIES} answers differ; {registered.summary}"
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=20_000)
    parser.add_argument("--changed", type=int, nargs="*", default=[100, 400])
    parser.add_argument("--catalog", type=Path, help="a folder with labelled photos; default: only the drawn catalogue")
    parser.add_argument("--size", type=int, default=160, help="pixels of a side that CATALOG's pictures are shrunk to")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    chosen = parser.parse_args()
    record: dict[str, Any] = {}
    if chosen.catalog:
        record["recall"] = measure_grocery(chosen.catalog, chosen.size)
    if chosen.products:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            home = Path(folder)
            make_mlflow_tables(home / "tables.db")
            own = {"HOME": str(home / "home"), "CATALOG": str(home / "shop"), "MLFLOW_URI": own_mlflow(home, home / "tables.db")}
            for name, value in (SETTINGS | own).items():
                patch.setenv(f"VITRINE_{name}", value)
            patch.setattr(steps, "DIRECT", 10**9)
            steps.without_spark(patch)
            record["shop"] = measure_shop(home, chosen.products, chosen.changed)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "pictures.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
