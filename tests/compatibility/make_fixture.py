"""Makes the compatibility fixture: run at commit 8710f00, with this folder laid over it as commit 87e3ed0 has it (names of that time).

    python -m tests.compatibility.make_fixture tests/compatibility/fixture-8710f00.tar.xz

A shop of PRODUCTS drawn blocks (8 x 8, seeded by the product's number), the tiny encoder of tests/tiny.py (16 numbers, seed 0) and
two shards, through the pipeline's own steps and a real MLflow server:

    version 1  whole, of the family that is chosen (flat), promoted
    version 2  whole, of a catalogue that changed, promoted: `previous`
    version 3  hourly, on version 2: products changed, new and deleted, so that it has deltas and tombstones; promoted: `live`
    others     whole, of version 2's vectors, one for each family of commit 8710f00; registered, not promoted

The archive holds the home without what can be fetched or made again (caches, logs, work folders, most product pictures), the exported
release of version 3 in `release`, and in `expected.json` what was asked of every version and what a replica of it answered. Run ids
and times differ from one making to the next; catalogue, encoder, queries and changes do not. Wherever a JSON file named the folder
of the home it names entry_points.ROOT.
"""

import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tasks.steps import common, indexing

from serving.contract.encoder import EncoderFolder
from tasks.index.families import FAMILIES
from tasks.registry import ENCODER_MODEL, ENCODER_PATH, INDEX_MODEL
from tests.catalogs import read_table, write_table
from tests.compatibility.entry_points import ROOT, Live, product_id, relocate, replica, search
from tests.conftest import mlflow_server as mlflow
from tests.tiny import tiny_encoder

PRODUCTS, PHOTOS, DIM = 2600, 60, 16
"""Products enough to train every family's lists on; the first so many have photos."""
LEFT_OUT = ("cache", "logs", "run", "work", "progress", "serving", "tiny", "asked")


def drawn(path: Path, seed: int, side: int) -> None:
    """A PNG of random blocks: what the tiny encoder makes of it does not depend on its size."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(path, optimize=True)


def make_catalog(folder: Path) -> None:
    rows, photos = [], []
    for n in range(PRODUCTS):
        drawn(folder / f"images/{n}.png", n, 32)
        rows.append({
            "product_id": product_id(n), "title": f"product {n}", "brand": f"brand {n % 7}",
            "category": f"kind {n % 2} > leaf {n % 4}", "price": 10 + n % 90, "currency": "EUR", "in_stock": int(n % 5 != 0),
            "image": f"images/{n}.png",
        })  # fmt: skip
    for n in range(PHOTOS):
        for split, side in (("train", 40), ("val", 48)):
            name = f"photos/{n}-{split}.png"
            drawn(folder / name, n, side)
            photos.append({"photo": name, "product_id": product_id(n), "split": split})
    write_table(folder / "products.csv", rows)
    write_table(folder / "photos.csv", photos)


def change_catalog(folder: Path) -> None:
    """Ten products fewer, and ten of another price."""
    rows = [r | {"price": 99} if n % 260 == 0 else r for n, r in enumerate(read_table(folder / "products.csv")) if n % 260 != 259]
    write_table(folder / "products.csv", rows)


def rebuild(snapshot: dict, encoder: dict, embedded: dict, run_key: str, family: str = "") -> dict[str, Any]:
    """The steps of rebuild_index behind the embedding."""
    os.environ["VITRINE_INDEX_FAMILY"] = family
    template = indexing.template(encoder, embedded, run_key)
    shards = [indexing.shard(n, snapshot, embedded, template, run_key) for n in indexing.shard_numbers(template)]
    tuned = indexing.tune(snapshot, encoder, template, shards, run_key)
    registered = indexing.register(snapshot, encoder, embedded, shards, tuned, run_key)
    os.environ["VITRINE_INDEX_FAMILY"] = ""
    print(registered["summary"], flush=True)
    return registered


def make_versions(live: Live) -> dict[str, str]:
    """Every version, each under the name that `expected.json` has it by; version 3 is live."""
    home = live.home
    tiny_encoder(home / "tiny", DIM)
    with live.registry.run("encoders", "tiny", "tiny") as run:
        run.artifacts(home / "tiny", ENCODER_PATH)
        tags = {"preset": "tiny", "verdict": "passed"}
        made = live.registry.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, tags, "tiny")
    live.registry.set_alias(ENCODER_MODEL, "champion", made.version)
    versions = {}
    for name in ("first", "second"):
        if versions:
            change_catalog(home / "shop")
        snapshot, encoder = common.snapshot(name), indexing.choose_encoder()
        embedded = indexing.embed(snapshot, encoder, name)
        registered = rebuild(snapshot, encoder, embedded, name)
        indexing.publish(registered)
        live.command("release", "promote", registered["version"])
        versions[name] = registered["version"]
    live.send(*(live.upsert(n) for n in range(100, 108)), *(live.upsert(n, seed=9000 + n) for n in range(108, 112)))
    live.send(*(live.upsert(n, seed=n) for n in range(5000, 5004)), *(live.delete(n) for n in (3, 11, 120, 121, 122)))
    versions["hourly"] = live.refresh("hourly")["version"]
    live.command("release", "promote", versions["hourly"])
    # Where nothing is live no gate compares a family with it: those of codes alone find too many other products.
    live.registry.client.delete_registered_model_alias(INDEX_MODEL, "live")
    for family in FAMILIES:
        registered = rebuild(snapshot, encoder, embedded, f"family-{family}", family)
        assert registered["passed"], registered["summary"]
        versions[family] = registered["version"]
    live.registry.set_alias(INDEX_MODEL, "live", versions["hourly"])
    return versions


def make_queries(home: Path) -> list[dict[str, Any]]:
    """Photos, products, vectors between products, and a filter."""
    rng = np.random.default_rng(8710)
    encoder = EncoderFolder(home / "tiny")
    some = encoder.open(encoder.manifest.query).encode(rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    vectors = some + 0.2 * rng.standard_normal(some.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    photos = [{"photo": f"photos/{n}-val.png"} for n in (0, 7, 21, 42)]
    asked = [{"vector": [round(float(v), 6) for v in vector], "k": 10} for vector in vectors]
    asked += [{"product_id": product_id(n), "k": 10} for n in (105, 110, 1000, 2500)]
    asked += [{"product_id": product_id(500), "k": 10, "filter": {"brand": ["brand 3"], "in_stock": True}}]
    return [*photos, *({"json": one} for one in asked)]


def pack(home: Path, archive: Path) -> None:
    for name in LEFT_OUT:
        shutil.rmtree(home / name, ignore_errors=True)
    for n in range(PHOTOS, PRODUCTS):
        (home / f"shop/images/{n}.png").unlink()
    relocate(home, str(home), ROOT)
    left = [str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and str(home).encode() in p.read_bytes()]
    if left:
        raise SystemExit(f"these files still name {home}: {', '.join(left)}")

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(archive, "w:xz", preset=9) as packed:
        for path in sorted(home.iterdir()):
            packed.add(path, path.name, filter=plain)


def main() -> None:
    archive = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory(prefix="vitrine-fixture-") as name:
        home = Path(name) / "home"
        make_catalog(home / "shop")
        with mlflow(home) as uri:
            live = Live(home, uri)
            os.environ.update(live.environment)
            versions = make_versions(live)
            live.command("release", "export", str(home / "release"))
            queries, answers = make_queries(home), {}
            for what, version in versions.items():
                exported = home / "asked" / what / "release"
                live.command("release", "export", str(exported), "--version", version)
                with replica(home / "asked" / what, release=str(exported)) as url:
                    answers[what] = [search(url, query, home) for query in queries]
                print(f"asked: {what}", flush=True)
        expected = {"versions": versions, "queries": queries, "answers": answers}
        (home / "expected.json").write_text(json.dumps(expected))
        pack(home, archive)
    print(f"{archive}: {archive.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
