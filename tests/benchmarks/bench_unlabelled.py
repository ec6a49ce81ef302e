"""A shop without labels: how far recall on synthetic queries lies from that on shoppers' photos.

    python -m tests.benchmarks.bench_unlabelled CATALOG [--pictures 300] [--preset efficientnet_lite0] [--out build/bench]

CATALOG is a folder with labelled photos. A shop is made of its product pictures and of some of its train photos, each a product of its
own, without labels; it goes from its folder to an index version by the pipeline's own steps, in this process. Then the version is asked
the views that stood in for photos, and the held-out photos, whose labels were hidden: found is any picture of the photo's product.
Prints both recalls with 95 % intervals, and the time to the first answer. Writes unlabelled.json.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from serving.contract.preprocess import ImageRejected
from serving.versions.release import Release
from tasks.catalog.snapshot import read_snapshot
from tasks.embed.images import read_image
from tasks.encoder.evaluate.retrieval_metrics import Interval, interval
from tasks.pipelines import common
from tasks.release.gates.end_to_end_eval import held_out_queries
from tasks.release.gates.evaluate import open_version
from tests.catalog.changes.refreshed import own_mlflow
from tests.catalogs import read_table, write_table
from tests.pipelines.steps import make_champion, make_version, without_spark
from tests.servers import make_mlflow_tables

TOP = 20


@dataclass(frozen=True)
class Asked:
    """Queries of one kind: the rank of the right answer of each, from 1 and 0 for none."""

    name: str
    ranks: np.ndarray

    def recall(self, k: int) -> Interval:
        return interval(((self.ranks > 0) & (self.ranks <= k)).astype(np.float64))


def hide_labels(catalog: Path, shop: Path, pictures: int) -> dict[str, str]:
    """Writes a shop of unlabelled pictures; gives the hidden product of each of its ids."""
    products = read_table(catalog / "products.csv")
    shown = [(p["product_id"], p.get("image") or p["image_uri"]) for p in products][:pictures]
    train = [(p["product_id"], p["photo"]) for p in read_table(catalog / "photos.csv") if p["split"] == "train"]
    order = np.random.default_rng(0).permutation(len(train))[: pictures - len(shown)]
    rows, hidden = [], {}
    (shop / "images").mkdir(parents=True)
    for n, (product, picture) in enumerate([*shown, *(train[i] for i in order)]):
        name = f"images/{n}{Path(picture).suffix}"
        shutil.copyfile(catalog / picture, shop / name)
        rows.append({"product_id": f"s{n:04d}", "title": f"picture {n}", "image": name})
        hidden[f"s{n:04d}"] = product
    write_table(shop / "products.csv", rows)
    return hidden


def ask(release: Release, photos: Sequence[tuple[bytes, set[str]]]) -> np.ndarray:
    """The rank (n,) of the first right answer to each photo (bytes, right ids), 0 for none among TOP; unreadable ones are left out."""
    ranks = []
    for data, right in photos:
        try:
            rows = release.answer(release.encode_photo(data), TOP).rows
        except ImageRejected:
            continue
        ids = [r["product_id"] for r in release.searcher.features.take(rows, ["product_id"])]
        ranks.append(next((n for n, one in enumerate(ids, 1) if one in right), 0))
    return np.asarray(ranks)


def measure(release: Release, catalog: Path, hidden: dict[str, str]) -> list[Asked]:
    """Views by their own picture, as the gates see them, and by any picture of the product; and the held-out photos."""
    snapshot = read_snapshot(release.manifest.snapshot.uri)
    of: dict[str, set[str]] = {}
    for one, product in hidden.items():
        of.setdefault(product, set()).add(one)
    views = [(read_image(q.photo_uri, snapshot.image_root), q.product_id) for q in held_out_queries(snapshot)]
    photos = [p for p in read_table(catalog / "photos.csv") if p["split"] == "val" and p["product_id"] in of]
    return [
        Asked("synthetic, its own picture", ask(release, [(data, {one}) for data, one in views])),
        Asked("synthetic, any of the product", ask(release, [(data, of[hidden[one]]) for data, one in views])),
        Asked("shoppers' photos", ask(release, [((catalog / p["photo"]).read_bytes(), of[p["product_id"]]) for p in photos])),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", type=Path, help="a folder with products.csv and labelled photos.csv")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--preset", default="efficientnet_lite0")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        home = Path(folder)
        hidden = hide_labels(chosen.catalog, home / "shop", chosen.pictures)
        make_mlflow_tables(home / "tables.db")
        for name, value in {
            "HOME": str(home / "home"), "CATALOG": str(home / "shop"), "MLFLOW_URI": own_mlflow(home, home / "tables.db"),
            "SERVING_URLS": "", "ENCODER_PRESET": chosen.preset, "P99_MS": "60000",
        }.items():  # fmt: skip
            patch.setenv(f"VITRINE_{name}", value)
        without_spark(patch)
        began = time.perf_counter()
        decision = make_champion("bench")
        encoder_s = time.perf_counter() - began
        made = make_version("bench-index")
        whole_s = time.perf_counter() - began
        print(decision.summary)
        print(made.summary)
        registry = common.registry()
        manifest = registry.index_manifest(made.version)
        asked = measure(open_version(registry, made.version), chosen.catalog, hidden)
    print(f"\n{len(hidden)} pictures of {len(set(hidden.values()))} products; queries: {manifest.queries}")
    print(f"encoder judged after {encoder_s:.0f} s, index version after {whole_s:.0f} s")
    print(f"\n{'queries':<32} {'n':>5}  {'Recall@1':<22} {'Recall@10':<22}")
    for one in asked:
        figures = "  ".join(f"{r.value:.3f} ({r.low:.3f} to {r.high:.3f})" for r in (one.recall(1), one.recall(10)))
        print(f"{one.name:<32} {len(one.ranks):>5}  {figures}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    record = {
        "preset": chosen.preset, "pictures": len(hidden), "encoder_s": encoder_s, "whole_s": whole_s, "summary": made.summary,
        "gates": [g.model_dump() for g in manifest.gates],
        "recall": {one.name: {str(k): vars(one.recall(k)) for k in (1, 10)} for one in asked},
    }  # fmt: skip
    (chosen.out / "unlabelled.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
