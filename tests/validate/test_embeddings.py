"""The suites of vectors and of the index's inputs: what an encoder or a copy can do wrong is named with products."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.contract.keys import product_keys
from tasks import storage
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.embed.job import EmbedResult
from tasks.embed.store import PLAIN, vector_column
from tasks.validate.embedding_moments import Moments, MomentsAccumulator, read_moments, shift, write_moments
from tasks.validate.embeddings import EmbeddingLimits, check_embeddings, check_index_inputs, inspect
from tests.catalogs import write_table

ROWS, DIM, SHARDS = 600, 16, 2


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("shop")
    write_table(folder / "products.csv", [{"product_id": f"p{n:03d}", "title": "t", "image": f"{n}.jpg"} for n in range(ROWS)])
    return take_snapshot(str(folder), str(folder / "snapshots"), "one")


def unit(rows: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, DIM)) + np.linspace(0, 1.5, DIM)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


Change = Callable[[np.ndarray, np.ndarray], None]


def made(folder: Path, vectors: np.ndarray, change: Change | None = None) -> EmbedResult:
    """The vectors of all products as the embedding job leaves them; `change` may spoil keys and vectors in place."""
    keys = product_keys(f"p{n:03d}" for n in range(ROWS))
    for shard in range(SHARDS):
        mine = np.flatnonzero(keys % SHARDS == shard)
        mine = mine[np.argsort(keys[mine])]
        key, rows = keys[mine].copy(), vectors[mine].copy()
        if change is not None and shard == 0:
            change(key, rows)
        sha = pa.array([hashlib.sha256(str(n).encode()).digest() for n in mine], pa.binary(32))
        with storage.writer(str(folder / f"shard={shard}" / "part-00000.parquet")) as stream:
            table = pa.table({"key": key, "image_sha256": sha, "vector": vector_column(rows)})
            pq.write_table(table, stream, row_group_size=100, write_page_checksum=True, **PLAIN)
    return EmbedResult("r", str(folder), "store", "q", vectors.shape[1], SHARDS, ROWS, ROWS, 0, ROWS, 0, {})


def said(embedded: EmbedResult, snapshot: Snapshot, docs: Path, before: Moments | None = None) -> tuple[str, str]:
    found = inspect(embedded, snapshot, "print")
    vectors = check_embeddings(found, embedded, snapshot, before, docs / "embeddings", EmbeddingLimits())
    return vectors.sentence, check_index_inputs(found, embedded, snapshot, docs / "inputs").sentence


def test_sound_vectors_pass_both_suites(tmp_path: Path, snapshot: Snapshot) -> None:
    embedded = made(tmp_path / "v", unit(ROWS, 0))
    before = inspect(embedded, snapshot, "print").moments
    vectors, inputs = said(embedded, snapshot, tmp_path, before)
    assert vectors == "embeddings: 12 expectations hold"
    assert inputs == "index inputs: 5 expectations hold"


def test_each_fault_of_vectors_is_named_with_products(tmp_path: Path, snapshot: Snapshot) -> None:
    def spoil(key: np.ndarray, rows: np.ndarray) -> None:
        rows[4, 2] = np.nan
        rows[9] *= 3
        rows[50:150] = rows[50]

    embedded = made(tmp_path / "v", unit(ROWS, 0), spoil)
    vectors, inputs = said(embedded, snapshot, tmp_path)
    for part in (
        "not_finite",
        "greatest_norm",
        "duplicate_share",
        "NaN or infinity: products p",
        "wrong length: products p",
        "the same vector: products p",
    ):
        assert part in vectors, f"{part} is not in: {vectors}"
    assert inputs == "index inputs: 5 expectations hold"


def flat_in(dimensions: int) -> np.ndarray:
    """(ROWS, DIM) unit vectors float16 whose first dimensions are the same in all."""
    flat = unit(ROWS, 0).astype(np.float32)
    flat[:, :dimensions] = 0
    return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float16)


def test_some_dimensions_that_a_small_catalogue_never_uses_are_no_fault(tmp_path: Path, snapshot: Snapshot) -> None:
    vectors = said(made(tmp_path / "v", flat_in(DIM // 2)), snapshot, tmp_path)[0]
    assert vectors == "embeddings: 10 expectations hold"


def test_dead_dimensions_and_products_unaccounted_for_are_seen(tmp_path: Path, snapshot: Snapshot) -> None:
    flat = flat_in(DIM // 2 + 1)
    embedded = made(tmp_path / "v", flat)
    lost = EmbedResult(**{**vars(embedded), "embedded": ROWS - 7, "quarantined": 3, "reasons": {"missing": 3}})
    vectors, inputs = said(lost, snapshot, tmp_path)
    for part in (
        "constant_dimensions",
        "catalogue is 600 and accounted is 596, but they must be equal",
        "embedded is 593 and vectors is 600",
        "in quarantine: 3 missing",
    ):
        assert part in vectors, f"{part} is not in: {vectors}"
    assert "in_shards" in inputs


def test_products_in_the_wrong_shard_out_of_order_or_unknown_are_named(tmp_path: Path, snapshot: Snapshot) -> None:
    def spoil(key: np.ndarray, rows: np.ndarray) -> None:
        key[[3, 4]] = key[[4, 3]]
        key[-1] += 1

    inputs = said(made(tmp_path / "v", unit(ROWS, 0), spoil), snapshot, tmp_path)[1]
    for part in ("unsorted", "misplaced", "unknown", "in the wrong shard: products key "):
        assert part in inputs, f"{part} is not in: {inputs}"


def test_a_flipped_bit_in_a_part_is_not_read_over(tmp_path: Path, snapshot: Snapshot) -> None:
    embedded = made(tmp_path / "v", unit(ROWS, 0))
    file = tmp_path / "v" / "shard=1" / "part-00000.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        inspect(embedded, snapshot, "print")


def test_a_placeholder_for_a_tenth_of_the_pictures_is_a_drift_and_a_fifth_of_new_products_is_none(tmp_path: Path) -> None:
    def moments(x: np.ndarray) -> Moments:
        gathering = MomentsAccumulator(DIM, len(x))
        for start in range(0, len(x), 700):
            gathering.add(x[start : start + 700].astype(np.float32))
        return gathering.moments("print")

    base = unit(5000, 1)
    renewed, replaced = base.copy(), base.copy()
    renewed[:1000] = unit(1000, 2)
    replaced[:500] = -base[0]
    np.testing.assert_allclose(moments(base).covariance, np.cov(base.astype(np.float64).T, bias=True), atol=1e-5)
    limits = EmbeddingLimits()
    mean, covariance = shift(moments(base), moments(renewed))
    assert mean < limits.most_mean_shift / 2
    assert covariance < limits.most_covariance_shift / 2
    mean, covariance = shift(moments(base), moments(replaced))
    assert mean > limits.most_mean_shift or covariance > limits.most_covariance_shift
    write_moments(str(tmp_path), moments(base))
    kept = read_moments(str(tmp_path))
    assert shift(moments(base), kept)[1] < 1e-6
    assert read_moments(str(tmp_path / "none")) is None
    assert shift(moments(base), Moments(5000, kept.mean, kept.covariance, "another encoder")) is None
    assert shift(moments(base[:100]), kept) is None, "too few to say"


def test_several_pictures_a_product_are_counted_and_ordered_by_position(tmp_path: Path, snapshot: Snapshot) -> None:
    """Half of the products have two pictures; then one loses a row, and two rows change places."""
    single = made(tmp_path / "v", unit(ROWS, 0))
    doubled = 0
    for shard in range(SHARDS):
        file = tmp_path / "v" / f"shard={shard}" / "part-00000.parquet"
        table = pq.read_table(file)
        rows = np.repeat(np.arange(len(table)), np.where(np.arange(len(table)) % 2, 2, 1))
        position = np.concatenate([[0], (np.diff(rows) == 0).astype(np.int16)])
        more = table.take(pa.array(rows)).append_column("position", pa.array(position, pa.int16()))
        sha = pa.array([hashlib.sha256(f"{shard} {n}".encode()).digest() for n in range(len(more))], pa.binary(32))
        noise = unit(len(more), shard + 5)
        more = more.set_column(1, "image_sha256", sha).set_column(2, "vector", vector_column(noise))
        pq.write_table(more, file, row_group_size=100, write_page_checksum=True, **PLAIN)
        doubled += int(position.sum())
    several = replace(
        single, pictures=ROWS + doubled, quarantined_pictures=4, duplicate_pictures=2, picture_reasons={"missing": 4}
    )
    taken = replace(snapshot, further_pictures=doubled + 6)
    vectors, inputs = said(several, taken, tmp_path)
    counts = (
        f"{ROWS + doubled + 6} pictures = {ROWS + doubled} usable + 4 in quarantine + 2 doubled; of embedded products 4 missing"
    )
    assert vectors == f"embeddings: 13 expectations hold; {counts}"
    assert inputs == "index inputs: 5 expectations hold"
    shuffled = more.take(pa.array([0, 2, 1, *range(3, len(more) - 1)]))
    pq.write_table(shuffled, file, row_group_size=100, write_page_checksum=True, **PLAIN)
    vectors, inputs = said(replace(several, quarantined_pictures=ROWS), taken, tmp_path)
    assert f"pictures is {ROWS + doubled} and vectors is {ROWS + doubled - 1}" in vectors
    assert "pictures cannot be used, allowed 2 %: VITRINE_MOST_QUARANTINED" in vectors
    assert "unsorted" in inputs


@pytest.mark.parametrize("titles", [0.3, 1.0])
def test_titles_are_no_drift_of_pictures_and_no_doubles_of_them(titles: float, tmp_path: Path, snapshot: Snapshot) -> None:
    """Words differ from pictures as a whole, and two titles may be the same to a tokenizer: neither says anything about an encoder."""
    x = unit(ROWS, 0)
    before = inspect(made(tmp_path / "before", x), snapshot, "print").moments
    bare = np.arange(ROWS) < titles * ROWS
    x[bare] = np.eye(1, DIM, dtype=np.float16)
    embedded = made(tmp_path / "now", x)
    for shard in range(SHARDS):
        part = tmp_path / "now" / f"shard={shard}" / "part-00000.parquet"
        table = pq.read_table(part)
        mine = np.isin(table["key"].to_numpy(), product_keys(f"p{n:03d}" for n in np.flatnonzero(bare)))
        table = table.append_column("position", pa.array(np.where(mine, -1, 0).astype(np.int16)))
        pq.write_table(table, part, row_group_size=100, write_page_checksum=True, **PLAIN)
    found = inspect(replace(embedded, pictures=ROWS, titles=int(bare.sum())), snapshot, "print")
    assert (found.facts["vectors"], found.facts["products"], found.facts["duplicate_share"]) == (ROWS, ROWS, 0.0)
    assert found.moments.count == ROWS - bare.sum()
    assert not any(found.bad.values())
    moved = shift(before, replace(found.moments, count=ROWS))
    assert titles == 1.0 or (moved is not None and moved[0] < EmbeddingLimits().most_mean_shift)
