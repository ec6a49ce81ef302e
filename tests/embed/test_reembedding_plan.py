"""What embedding will cost: counts from the store and the hash cache, a measured sample, and when a person is asked."""

from pathlib import Path

import pyarrow as pa
import pytest

from serving.contract.encoder import EncoderFolder
from tasks.catalog.snapshot import Snapshot
from tasks.embed.job import EmbedConfig, embed_snapshot, worker_config
from tasks.embed.reembedding_plan import (
    EmbeddingPlan,
    Pace,
    PictureCount,
    TitlePlan,
    count_pictures,
    duration,
    make_plan,
    stored_bytes,
)
from tasks.embed.sample_pace import local_workers, sample_pace
from tasks.embed.store import EmbeddingStore, encoder_store
from tasks.errors import VitrineError
from tasks.watch.cost import Prices
from tests.embed.shop import encoder, picture, shop, snapshot

PRICES = Prices(core_hour=0.05, gpu_hour=2.0)
PACE = Pace(100.0, "measured", cores=4.0)


def counted(taken: Snapshot, store_uri: Path, folder: Path, version: str) -> PictureCount:
    return count_pictures(taken, str(store_uri), store_of(store_uri, folder, version))


def store_of(store_uri: Path, folder: Path, version: str) -> EmbeddingStore:
    manifest = EncoderFolder(folder).manifest
    return encoder_store(str(store_uri), manifest.name, version, manifest.variant(manifest.document).fingerprint, manifest.dim)


def test_counts_follow_the_store_of_the_version_and_the_hash_cache(tmp_path: Path) -> None:
    catalogue, store, folder = shop(tmp_path / "shop", 12), tmp_path / "store", encoder(tmp_path / "encoder")
    picture(catalogue / "images" / "p1.jpg", 0)  # p0 and p1 show the same picture
    (catalogue / "images" / "p2.jpg").write_bytes(b"no picture")
    first = snapshot(catalogue, store)
    before = counted(first, store, folder, "1")
    assert (before.pictures, before.stored, before.to_embed, before.unhashed) == (12, 0, 12, 12), "nothing was read yet"
    embed_snapshot(first, folder, "1", str(store), "run", tmp_path / "work", EmbedConfig(direct=100))
    after = counted(first, store, folder, "1")
    assert (after.pictures, after.stored, after.rejected, after.to_embed) == (11, 10, 1, 0)
    other = counted(first, store, folder, "2")
    assert (other.pictures, other.stored, other.to_embed, other.unhashed) == (11, 0, 11, 0), (
        "of another version every picture again"
    )
    picture(catalogue / "images" / "p12.jpg", 12)
    with (catalogue / "products.csv").open("a") as table:
        table.write("p12,Product 12,images/p12.jpg\np13,Product 13,\n")
    grown = counted(snapshot(catalogue, store, "s2"), store, folder, "1")
    assert (grown.to_embed, grown.unhashed, grown.uris.to_pylist()) == (1, 1, ["images/p12.jpg"])


def plan(to_embed: int, pace: Pace = PACE, approve_hours: float = 8.0) -> EmbeddingPlan:
    count = PictureCount(1_000_000, 1_000_000 - to_embed, 0, 0, pa.array(["x.jpg"] * to_embed))
    return make_plan("7", 512, 1_000_000, count, pace, PRICES, approve_hours)


def test_hours_cost_and_bytes_follow_from_the_pace_and_the_price_table() -> None:
    made = plan(720_000)
    assert made.hours == pytest.approx(2.0)
    assert made.cost == pytest.approx(2 * 4 * 0.05)
    assert (
        made.bytes
        == 720_000 * (32 + 2 * 512 + 13 + 16) + 1_000_000 * (32 + 2 * 512 + 13 + 8)
        == stored_bytes(10**6, 720_000, 512)
    )
    assert made.summary == (
        "720000 of 1000000 pictures to embed with encoder version 7, 280000 have a vector: 2.0 hours at 100.0 pictures/s (measured), "
        "at a cost of 0.40, 1.73 GiB in the store"
    )
    assert "| Pictures to embed | 720,000 of 1,000,000 |" in made.text
    on_gpu = plan(720_000, Pace(1000.0, "measured", cores=8.0, gpus=1.0))
    assert on_gpu.cost == pytest.approx(0.2 * (8 * 0.05 + 2.0))


def test_titles_count_in_hours_cost_and_bytes() -> None:
    count = PictureCount(1_000_000, 1_000_000, 0, 0, pa.array([], pa.string()))
    nothing = Pace(0.0, "nothing to embed")
    made = make_plan("7", 512, 1_000_000, count, nothing, PRICES, 8.0, TitlePlan(900_000, 720_000, 50.0, 2.0))
    assert made.hours == pytest.approx(4.0)
    assert made.cost == pytest.approx(4 * 2 * 0.05)
    assert made.bytes == stored_bytes(10**6, 720_000, 512)
    assert not made.needs_approval
    assert "and 720000 of 900000 titles of products without a picture: 4.0 hours" in made.summary
    assert "| Titles to embed, of products without a picture | 720,000 of 900,000, 50.0 a second by 2 cores |" in made.text
    assert EmbeddingPlan.from_json(made.to_json()) == made
    assert make_plan("7", 512, 10, count, nothing, PRICES, 8.0, TitlePlan(9, 9)).needs_approval, "no pace is known"
    none = make_plan("7", 512, 10, count, nothing, PRICES, 8.0, TitlePlan(9))
    assert none.summary.endswith("and 0 of 9 titles of products without a picture: nothing to embed")


@pytest.mark.parametrize(
    ("to_embed", "pace", "approve_hours", "asked"),
    [
        (720_000, PACE, 8.0, False),
        (720_000, PACE, 1.9, True),
        (720_000, PACE, 0.0, False),
        (10, Pace(0.0, "no sample here"), 8.0, True),
        (10, Pace(0.0, "no sample here"), 0.0, False),
        (0, Pace(0.0, "nothing to embed"), 0.1, False),
    ],
)
def test_a_person_is_asked_above_the_limit_or_where_nothing_is_known(
    to_embed: int, pace: Pace, approve_hours: float, asked: bool
) -> None:
    made = plan(to_embed, pace, approve_hours)
    assert made.needs_approval is asked
    assert EmbeddingPlan.from_json(made.to_json()) == made


def test_a_sample_is_measured_through_the_jobs_worker_and_leaves_the_store_alone(tmp_path: Path) -> None:
    catalogue, folder = shop(tmp_path / "shop", 5), encoder(tmp_path / "encoder")
    taken = snapshot(catalogue, tmp_path / "store")
    config = worker_config(taken, folder, EncoderFolder(folder).manifest, "", "run", "", EmbedConfig(batch=8))
    uris = ["images/none.jpg", *(f"images/p{n}.jpg" for n in range(5))]
    work = tmp_path / "work"
    work.mkdir()
    rate, pictures = sample_pace(uris, config, 2, work)
    assert rate > 0
    assert pictures % 16 == 0, "two workers with full batches of 8"
    assert not (tmp_path / "store" / "embeddings").exists()
    with pytest.raises(VitrineError, match="none of 1 pictures could be read"):
        sample_pace(["images/none.jpg"], config, 1, work)


def test_workers_are_known_of_this_machine_alone() -> None:
    assert [local_workers(m) for m in ("local[3]", "local[2,4]", "spark://spark:7077", "local")] == [3, 2, 1, 1]
    assert local_workers("local[*]") >= 1


def test_durations_are_said_as_people_say_them() -> None:
    assert [duration(h) for h in (0.01, 0.2, 1.0, 26.04)] == ["36 s", "12 min", "1.0 hours", "26.0 hours"]


def test_a_sample_of_few_pictures_is_measured_again_by_each_worker_and_each_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, folder = shop(tmp_path / "shop", 8), encoder(tmp_path / "encoder")
    taken = snapshot(catalogue, tmp_path / "store")
    config = worker_config(taken, folder, EncoderFolder(folder).manifest, "", "run", "", EmbedConfig(batch=8))
    batches: list[int] = []
    real = EmbeddingStore.write
    monkeypatch.setattr(EmbeddingStore, "write", lambda *told: batches.append(len(told[1]) // 8) or real(*told))
    work = tmp_path / "work"
    work.mkdir()
    for attempt in range(2):  # the first was killed before its folder was deleted
        batches.clear()
        _, pictures = sample_pace([f"images/p{n}.jpg" for n in range(8)], config, 2, work)
        assert batches[:2] == [1, 1], f"attempt {attempt}: the second chunk has the first one's pictures, and is measured"
        assert 8 * sum(batches[2:]) == pictures
        assert len(batches) == 4
