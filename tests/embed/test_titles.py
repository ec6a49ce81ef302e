"""Products without a picture through the embedding job, against brute force over titles."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.contract.encoder import EncoderFolder
from serving.contract.keys import product_key
from serving.versions.text_encoder import TextEncoder
from tasks.catalog.schema import RowLimits
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.catalog.sources.source import SourceOptions
from tasks.embed.job import EmbedConfig, EmbedResult, embed_snapshot
from tasks.embed.quarantine import read_quarantine
from tasks.embed.reembedding_plan import titles_to_embed
from tasks.embed.sample_pace import sample_titles
from tasks.embed.store import EmbeddingStore
from tasks.embed.titles import title_sha256
from tasks.index.vectors import shard_batches, shard_pictures
from tests.catalogs import write_table
from tests.embed.shop import picture
from tests.tiny import tiny_encoder

CONFIG = EmbedConfig(batch=8, direct=1000, text_only=True)
PRODUCTS = {
    "p0": ("red mug", "images/0.png"), "p1": ("green bag", "images/1.png"), "p2": ("green bag", "images/lost.png"),
    "t0": ("red mug", ""), "t1": ("blue lamp", ""), "t2": ("blue lamp", ""), "blank": ("  ", ""),
}  # fmt: skip


def run(folder: Path, name: str, words: bool = True, config: EmbedConfig = CONFIG) -> tuple[Snapshot, EmbedResult]:
    """Embeds the products; the encoder of this folder has a text tower where `words`."""
    for number in range(2):
        picture(folder / "shop" / f"images/{number}.png", number)
    write_table(
        folder / "shop" / "products.csv", [{"product_id": i, "title": t, "image": uri} for i, (t, uri) in PRODUCTS.items()]
    )
    tiny_encoder(folder / "encoder", words=words)
    options = SourceOptions(limits=RowLimits(text_only=True))
    taken = take_snapshot(str(folder / "shop"), str(folder / "store/snapshots"), name, options)
    result = embed_snapshot(taken, folder / "encoder", "1", str(folder / "store"), name, folder / f"work-{name}", config)
    return taken, result


def rows(result: EmbedResult) -> dict[int, tuple[int, bytes, np.ndarray]]:
    """Position, content and vector of each product, which all have one."""
    found = {}
    for shard in range(result.shards):
        vectors = [v for _, block in shard_batches(result.vectors_uri, shard, unit=False) for v in block]
        pictures = shard_pictures(result.vectors_uri, [shard])
        for row, vector in zip([] if pictures is None else pictures.to_pylist(), vectors, strict=True):
            found[row["product"]] = (row["position"], row["image_sha256"], vector)
    return found


def test_titles_have_the_text_towers_vectors(tmp_path: Path) -> None:
    taken, result = run(tmp_path, "one")
    assert (taken.rows, taken.titles, taken.pictures, taken.quarantined_rows) == (7, 4, 7, 0)
    assert (result.catalogue, result.embedded, result.quarantined, result.titles) == (7, 5, 2, 3)
    assert (result.pictures, result.quarantined_pictures, result.embedded_now) == (5, 2, 2)
    assert "3 products have no picture and are embedded by their titles" in result.summary
    encoders = EncoderFolder(tmp_path / "encoder")
    text = TextEncoder.open(encoders)
    assert text is not None
    found = rows(result)
    for product in ("t0", "t1", "t2"):
        title = PRODUCTS[product][0]
        position, content, vector = found[product_key(product)]
        assert (position, content) == (-1, title_sha256(title))
        np.testing.assert_array_equal(vector, text.encode(title).astype(np.float16))
    assert {found[product_key(p)][0] for p in ("p0", "p1")} == {0}
    reasons = {e.product_id: (e.reason, e.position) for e in read_quarantine(str(tmp_path / "store"), ["one"])}
    assert reasons == {"p2": ("missing", 0), "blank": ("missing", 0)}, "whose picture is lost is not found by its title"


def test_a_title_is_embedded_once_per_encoder_version(tmp_path: Path) -> None:
    _, first = run(tmp_path, "one")
    _, again = run(tmp_path, "two")
    assert (again.embedded_now, again.reused, again.titles) == (0, 5, 3)
    assert again.parts_sha256 == first.parts_sha256
    for key, (position, content, vector) in rows(first).items():
        assert rows(again)[key][:2] == (position, content)
        np.testing.assert_array_equal(rows(again)[key][2], vector)


def test_a_plan_counts_each_title_once_and_measures_them(tmp_path: Path) -> None:
    taken, result = run(tmp_path, "one")
    encoders = EncoderFolder(tmp_path / "encoder")
    empty = EmbeddingStore(str(tmp_path / "empty"), encoders.manifest.dim)
    titles, missing = titles_to_embed(taken, empty)
    assert (titles, sorted(missing)) == (2, ["blue lamp", "red mug"])
    assert titles_to_embed(taken, EmbeddingStore(result.store_uri, encoders.manifest.dim)) == (2, [])
    assert sample_titles(missing, encoders) > 0


@pytest.mark.parametrize(("words", "text_only", "reason"), [(False, True, "no_text_tower"), (True, False, "missing")])
def test_without_a_text_tower_or_the_setting_they_are_in_quarantine(
    words: bool, text_only: bool, reason: str, tmp_path: Path
) -> None:
    _, result = run(tmp_path, "one", words, replace(CONFIG, text_only=text_only))
    assert (result.embedded, result.quarantined, result.titles, result.pictures) == (2, 5, 0, 2)
    reasons = {e.product_id: e.reason for e in read_quarantine(str(tmp_path / "store"), ["one"])}
    assert reasons == {"p2": "missing", "blank": "missing"} | dict.fromkeys(("t0", "t1", "t2"), reason)
    assert shard_pictures(result.vectors_uri, range(result.shards)) is None, "the shards are those of main pictures alone"
