"""Several pictures of a product through the embedding job, without Spark, against brute force over files and products."""

import hashlib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.contract.keys import product_key
from tasks import storage
from tasks.catalog.snapshot import Snapshot
from tasks.embed import worker
from tasks.embed.images import read_image
from tasks.embed.job import EmbedConfig, EmbedResult, embed_snapshot
from tasks.embed.quarantine import read_quarantine
from tasks.embed.reembedding_plan import count_pictures
from tasks.embed.store import EmbeddingStore
from tests.catalogs import write_table
from tests.embed.shop import encoder, picture, snapshot

DIRECT = EmbedConfig(batch=8, direct=10_000)
CONTENTS = 14
BAD = ("missing", "not_an_image")


@dataclass
class Shop:
    """Files of a shop (name to content: a number, or one of BAD) and the pictures of each product."""

    folder: Path
    files: dict[str, object] = field(default_factory=dict)
    products: dict[str, list[str]] = field(default_factory=dict)

    def write(self) -> None:
        for name, content in self.files.items():
            path = self.folder / "shop" / name
            path.unlink(missing_ok=True)
            if content == "not_an_image":
                path.write_bytes(f"no picture: {name}".encode())
            elif content != "missing":
                picture(path, int(str(content)))
        rows = [
            {"product_id": p, "title": p, "image": uris[0], "images": json.dumps(uris[1:]) if uris[1:] else ""}
            for p, uris in self.products.items()
        ]
        write_table(self.folder / "shop" / "products.csv", rows)

    def run(self, name: str) -> tuple[Snapshot, EmbedResult]:
        self.write()
        taken = snapshot(self.folder / "shop", self.folder / "store", name)
        return taken, embed_snapshot(
            taken, self.folder / "encoder", "1", str(self.folder / "store"), name, self.folder / f"work-{name}", DIRECT
        )

    def sha(self, uri: str) -> bytes:
        return hashlib.sha256((self.folder / "shop" / uri).read_bytes()).digest()

    def sha_of(self, uri: str) -> bytes | None:
        return self.sha(uri) if (self.folder / "shop" / uri).is_file() else None

    def usable(self) -> list[tuple[int, int, bytes]]:
        """(key, position, sha256) of every picture that must have a vector, by brute force."""
        rows = []
        for product, uris in self.products.items():
            seen = set()
            for position, uri in enumerate(uris):
                if self.files[uri] not in BAD and (content := self.sha(uri)) not in seen:
                    seen.add(content)
                    rows.append((product_key(product), position, content))
        return sorted(rows)


def drawn(folder: Path, seed: int) -> Shop:
    """A shop whose products share pictures, have one twice under two names, and have bad ones."""
    rng = random.Random(seed)
    shop = Shop(folder)
    (folder / "shop" / "images").mkdir(parents=True)
    encoder(folder / "encoder")
    for number in range(CONTENTS * 2):
        shop.files[f"images/{number}.png"] = rng.choice(BAD) if rng.random() < 0.3 else number % CONTENTS
    for number in range(25):
        shop.products[f"p{number}"] = rng.sample(sorted(shop.files), rng.randint(1, 8))
    shop.products["bad"] = [uri for uri, content in shop.files.items() if content in BAD][:3]
    return shop


def vectors(result: EmbedResult) -> pa.Table:
    files = [f for s in range(result.shards) for f in storage.list_files(f"{result.vectors_uri}/shard={s}", ".parquet")]
    return pa.concat_tables([pq.read_table(file) for file in files])


def check(shop: Shop, taken: Snapshot, result: EmbedResult) -> None:
    """The rows, the quarantine and the counts are those of brute force."""
    expected = shop.usable()
    rows = vectors(result)
    found = list(zip(*(rows[name].to_pylist() for name in ("key", "position", "image_sha256")), strict=True))
    assert sorted(found) == expected
    assert found == sorted(found, key=lambda row: (row[0] % result.shards, row))
    matrix = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
    by_content = dict(zip(rows["image_sha256"].to_pylist(), matrix, strict=True))
    assert all(np.array_equal(by_content[sha], row) for (_, _, sha), row in zip(found, matrix, strict=True))

    alive = {key for key, _, _ in expected}
    bad = {
        (product_key(p), position): uri
        for p, uris in shop.products.items()
        for position, uri in enumerate(uris)
        if shop.files[uri] in BAD
    }
    entries = read_quarantine(str(shop.folder / "store"), [result.run_key], pictures=True)
    assert {(e.key, e.position): e.image_uri for e in entries} == bad
    assert all(e.reason == shop.files[e.image_uri] and e.found == (e.key in alive) for e in entries)
    dead = {p: shop.files[uris[0]] for p, uris in shop.products.items() if product_key(p) not in alive}
    assert {e.product_id: e.reason for e in read_quarantine(str(shop.folder / "store"), [result.run_key])} == dead

    everything = sum(map(len, shop.products.values()))
    assert (result.catalogue, result.embedded, result.quarantined) == (len(shop.products), len(alive), len(dead))
    assert (result.pictures, result.quarantined_pictures) == (len(expected), len(bad))
    assert result.duplicate_pictures == everything - len(expected) - len(bad)
    assert result.catalogue_pictures == taken.pictures == everything
    assert sum(result.reasons.values()) == len(dead)
    others = sum(key in alive for key, _ in bad)
    assert sum(result.picture_reasons.values()) == others
    assert result.note().endswith(f"; {others} pictures cannot be used, of products that have another one")


@pytest.mark.parametrize("seed", range(3))
def test_every_usable_picture_is_a_row_and_each_content_is_embedded_once(tmp_path: Path, seed: int) -> None:
    shop = drawn(tmp_path, seed)
    taken, result = shop.run("r1")
    check(shop, taken, result)
    assert result.embedded_now == len({sha for _, _, sha in shop.usable()})
    store = EmbeddingStore(result.store_uri, 16)
    assert sorted(store.checksums().to_pylist()) == sorted({sha for _, _, sha in shop.usable()})
    count = count_pictures(taken, str(tmp_path / "store"), store)
    assert (count.rows, count.stored) == (taken.pictures, result.embedded_now)


def test_a_change_costs_the_changed_pictures_only(tmp_path: Path) -> None:
    shop = drawn(tmp_path, 5)
    for number in range(4):
        shop.files[f"images/good-{number}.png"] = number + 100
    shop.products["p0"] = [f"images/good-{n}.png" for n in range(3)]
    shop.run("r1")
    changes: list[tuple[str, int, list[str]]] = [
        ("reordered", 0, ["images/good-2.png", "images/good-0.png", "images/good-1.png"]),
        ("removed", 0, ["images/good-2.png", "images/good-1.png"]),
        ("added", 1, ["images/good-2.png", "images/good-1.png", "images/good-3.png"]),
    ]
    for name, embedded, uris in changes:
        shop.products["p0"] = uris
        taken, result = shop.run(name)
        check(shop, taken, result)
        assert result.embedded_now == embedded, name
    shop.files["images/good-1.png"] = 777
    taken, result = shop.run("replaced")
    check(shop, taken, result)
    assert result.embedded_now == 1
    assert result.reused == result.embedded - 1


def test_one_picture_a_product_has_the_vectors_it_always_had(tmp_path: Path) -> None:
    shop = drawn(tmp_path, 6)
    shop.products = {product: uris[:1] for product, uris in shop.products.items()}
    _, result = shop.run("r1")
    rows = vectors(result)
    assert rows.column_names == ["key", "image_sha256", "palette", "vector"]
    assert sorted(zip(rows["key"].to_pylist(), rows["image_sha256"].to_pylist(), strict=True)) == [
        (key, sha) for key, _, sha in shop.usable()
    ]
    assert "doubled" not in result.summary
    assert (result.pictures, result.quarantined_pictures) == (result.embedded, result.quarantined)


def test_pictures_that_did_not_change_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = drawn(tmp_path, 7)
    _, first = shop.run("r1")
    (cache,) = (tmp_path / "store" / "looks").rglob("*.parquet")
    table = pq.read_table(cache)
    assert len(set(table["image_uri"].to_pylist())) == len({u for uris in shop.products.values() for u in uris if shop.sha_of(u)})
    assert table.schema.field("image_uri").type == pa.string(), "as releases of before read it"
    pq.write_table(table.set_column(0, "image_uri", table["image_uri"].cast(pa.large_string())), cache)  # as some wrote it
    read: set[str] = set()
    monkeypatch.setattr(worker, "read_image", lambda uri, *rest: read.add(uri) or read_image(uri, *rest))
    monkeypatch.setattr(Shop, "write", lambda _: None)
    taken, again = shop.run("r2")
    check(shop, taken, again)
    assert again.embedded_now == 0
    assert read == {uri for uris in shop.products.values() for uri in uris if shop.files[uri] == "missing"}
    assert vectors(again).equals(vectors(first))
