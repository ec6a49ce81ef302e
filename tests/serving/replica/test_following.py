"""Slots follow the aliases; what cannot be verified never serves; a flip back waits for nothing."""

import gc
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from serving.contract.files import ContractError, FileRef
from serving.contract.manifest import IndexManifest
from serving.index.searcher import Searcher
from serving.search.pipeline import row_of
from serving.search.query import QueryError
from serving.versions.golden_answers import write_golden
from serving.versions.release import Release
from serving.versions.slots import RETRY_S, ReleaseOpener, Slots
from serving.versions.version_source import FolderSource
from tests.serving.replica.storefront import Storefront, corrupt, put_file, reseal, tombstones


def slots_of(store: Storefront) -> Slots:
    slots = Slots(FolderSource(store.release))
    slots.refresh()
    return slots


def live(slots: Slots) -> str:
    return slots.live.version if slots.live else ""


def test_a_flip_there_and_back_and_nothing_while_aliases_rest(store: Storefront) -> None:
    slots = slots_of(store)
    first = slots.live
    store.point(green="2")
    slots.refresh()
    assert (live(slots), slots.live_slot, slots.slots["green"].state) == ("1", "blue", "ready")
    store.point(live="2")
    slots.refresh()
    slots.refresh()
    assert (live(slots), slots.live_slot) == ("2", "green")
    store.point(live="1")
    slots.refresh()
    assert slots.live is first
    assert slots.flips == 3


def damage_index(store: Storefront) -> None:
    corrupt(store.release / "files" / store.manifest("2")["segments"][0]["index"]["sha256"])


def damage_rows(store: Storefront) -> None:
    """Version 2 gets a row table of its own (the two versions share theirs), which then loses a byte."""
    first, second = store.manifest("2")["segments"]
    table = pq.read_table(store.release / "files" / second["table"]["sha256"])
    pq.write_table(table, store.release / "own.parquet", compression="none")
    ref = put_file(store, (store.release / "own.parquet").read_bytes(), "own.parquet")
    reseal(store, "2", {"segments": [first, second | {"table": ref.model_dump()}]})
    corrupt(store.release / "files" / ref.sha256)


def truncate_golden(store: Storefront) -> None:
    path = store.release / "files" / store.manifest("2")["golden"]["sha256"]
    path.write_bytes(path.read_bytes()[:-10])


def lose_a_file(store: Storefront) -> None:
    (store.release / "files" / store.manifest("2")["segments"][0]["index"]["sha256"]).unlink()


def damage_encoder(store: Storefront) -> None:
    corrupt(store.release / "encoders" / store.manifest("2")["encoder"]["manifest"]["sha256"] / "student.fp32.onnx")


def damage_manifest(store: Storefront) -> None:
    (store.release / "2" / "manifest.json").write_text("{")


def other_encoder(store: Storefront) -> None:
    """The index of one encoder beside another encoder: what must never answer."""
    reseal(store, "2", {"encoder": store.manifest("2")["encoder"] | {"manifest": store.manifest("1")["encoder"]["manifest"]}})


def other_golden(store: Storefront) -> None:
    reseal(store, "2", {"golden": store.manifest("1")["golden"]})


def missing_shard(store: Storefront) -> None:
    reseal(store, "2", {"segments": store.manifest("2")["segments"][:1]})


def segment_of_another_version(store: Storefront) -> None:
    """Whole files by checksum, of the wrong version: only the golden answers notice."""
    one, two = store.manifest("2")["segments"]
    reseal(store, "2", {"segments": [one, two | {"index": store.manifest("1")["segments"][1]["index"]}]})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_index, "the file is corrupt"),
        (damage_rows, "the file is corrupt"),
        (truncate_golden, "truncated or replaced"),
        (lose_a_file, "the file is missing"),
        (damage_encoder, "the file is corrupt"),
        (damage_manifest, "not a IndexManifest"),
        (other_encoder, "fingerprint differs"),
        (other_golden, "golden answers"),
        (missing_shard, "no base segment"),
        (segment_of_another_version, "golden answers"),
    ],
)
def test_a_damaged_candidate_never_serves_and_says_why(
    store: Storefront, damage: Callable[[Storefront], None], says: str
) -> None:
    damage(store)
    slots = slots_of(store)
    store.point(green="2", live="2")
    slots.refresh()
    green = slots.describe()["slots"]["green"]  # type: ignore[index]
    assert green["state"] == "failed"
    assert says in green["reason"]
    assert (live(slots), slots.get("green"), slots.failures) == ("1", None, 1)


def test_live_goes_on_when_its_own_slot_is_given_a_damaged_version(store: Storefront) -> None:
    slots = slots_of(store)
    damage_index(store)
    store.point(blue="2", live="2")
    slots.refresh()
    assert (live(slots), slots.slots["blue"].state) == ("1", "failed")


def mended(store: Storefront, clock: Callable[[], float]) -> Slots:
    """A replica in whose slot green version 2 failed, for a file that is there again now."""
    slots = Slots(FolderSource(store.release), clock=clock)
    path = store.release / "files" / store.manifest("2")["segments"][0]["index"]["sha256"]
    whole = path.read_bytes()
    path.unlink()
    store.point(green="2")
    slots.refresh()
    path.write_bytes(whole)
    return slots


def test_a_failed_version_is_tried_again_after_a_while(store: Storefront) -> None:
    now = [0.0]
    slots = mended(store, lambda: now[0])
    slots.refresh()
    assert slots.slots["green"].state == "failed"
    now[0] = RETRY_S
    slots.refresh()
    assert slots.slots["green"].state == "ready"


def failures(store: Storefront, slots: Slots, now: list[float], until_s: int) -> list[int]:
    """When slot green failed, polled each second."""
    at: list[int] = []
    for now[0] in range(until_s + 1):
        before = slots.failures
        slots.refresh()
        at += [int(now[0])] if slots.failures > before else []
    return at


def test_the_pause_grows_with_each_failure_and_the_answer_says_it(store: Storefront) -> None:
    """A version that is broken for good is not fetched all day; asking for the aliases alone does not load it either."""
    now = [0.0]
    slots = Slots(FolderSource(store.release), clock=lambda: now[0])
    damage_index(store)
    store.point(green="2")
    assert failures(store, slots, now, 2000) == [0, 30, 90, 210, 450, 930, 1530]
    green = slots.describe()["slots"]["green"]  # type: ignore[index]
    assert (green["failures"], green["retry_s"]) == (7, 130)
    store.point(green="1")
    slots.refresh()
    green = slots.describe()["slots"]["green"]  # type: ignore[index]
    assert (green["state"], green["failures"], green["retry_s"]) == ("ready", 0, None)


def test_what_live_names_is_tried_all_the_time(store: Storefront) -> None:
    now = [0.0]
    slots = Slots(FolderSource(store.release), clock=lambda: now[0])
    damage_index(store)
    store.point(blue="2", live="2")
    assert failures(store, slots, now, 150) == [0, 30, 60, 90, 120, 150]


def test_a_long_pause_ends_when_live_names_the_version(store: Storefront) -> None:
    now = [0.0]
    slots = Slots(FolderSource(store.release), clock=lambda: now[0])
    damage_index(store)
    store.point(green="2")
    failures(store, slots, now, 930)  # the next would be at 1530
    store.point(live="2")
    slots.refresh()
    assert slots.describe()["slots"]["green"]["retry_s"] == RETRY_S  # type: ignore[index]
    now[0] += RETRY_S
    slots.refresh()
    assert slots.failures == 7


def test_a_failed_version_is_tried_again_at_once_when_it_is_asked_for(store: Storefront) -> None:
    slots = mended(store, lambda: 0.0)
    for other in ("", "1"):
        slots.follow(again=other)
        assert slots.slots["green"].state == "failed"
    slots.follow(again="2")
    assert slots.slots["green"].state == "loading"
    slots.refresh()
    assert slots.slots["green"].state == "ready"


def test_a_registry_that_is_away_disturbs_nothing(store: Storefront) -> None:
    slots = slots_of(store)
    aliases = store.release / "aliases.json"
    aliases.write_text("{")
    slots.refresh()
    assert live(slots) == "1"
    assert "does not answer" in slots.error
    aliases.write_text(json.dumps({"blue": "1", "live": "1"}))
    slots.refresh()
    assert slots.error == ""


class SlowSource(FolderSource):
    """A source that lets the thread called "loader" fetch only when told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked, self.let = threading.Event(), threading.Event()

    def fetch(self, ref: FileRef) -> Path:
        if threading.current_thread().name == "loader":
            self.asked.set()
            assert self.let.wait(60)
        return super().fetch(ref)


def test_a_flip_back_does_not_wait_for_a_candidate_that_loads(store: Storefront) -> None:
    source = SlowSource(store.release)
    store.point(green="2", live="2")
    slots = Slots(source)
    slots.refresh()
    (store.release / "3").mkdir()
    (store.release / "3" / "manifest.json").write_text((store.release / "1" / "manifest.json").read_text())
    store.point(green="3")
    slots.follow()
    loader = threading.Thread(target=slots.load_next, name="loader")
    loader.start()
    assert source.asked.wait(60)
    store.point(live="1")
    slots.follow()
    assert (live(slots), slots.slots["green"].state) == ("1", "loading")
    source.let.set()
    loader.join(60)
    assert slots.slots["green"].state == "ready"


def test_an_alias_that_moved_on_meanwhile_wins(store: Storefront) -> None:
    slots = slots_of(store)
    store.point(green="2")
    slots.follow()
    store.point(green="")
    slots.follow()
    assert not slots.load_next()
    assert slots.slots["green"].state == "empty"


def test_deleted_products_are_neither_found_nor_asked_about(store: Storefront) -> None:
    gone = store.ids[3:6]
    tombstones(store, "1", gone)
    searcher = Searcher.open(IndexManifest(**store.manifest("1")), FolderSource(store.release).fetch)
    write_golden(store.release / "golden.npz", searcher, store.vectors["1"][:8])
    ref = put_file(store, (store.release / "golden.npz").read_bytes(), "golden.npz")
    reseal(store, "1", {"golden": ref.model_dump()})
    release = slots_of(store).live
    assert release is not None
    assert release.searcher.live_rows == 45
    found = release.retrieve(store.vectors["1"][3:4], 48)
    rows = found.rows[0][found.rows[0] >= 0]
    assert len(rows) == 45
    assert not set(gone) & {r["product_id"] for r in release.searcher.features.take(rows, ["product_id"])}
    with pytest.raises(QueryError, match="not in this index version"):
        row_of(release.searcher, gone[0])
    assert row_of(release.searcher, store.ids[0]) >= 0


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without Python's cyclic garbage collector: what is freed now is freed because nothing refers to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_retired_version_is_freed_when_its_last_request_has_ended(store: Storefront, no_collector: None) -> None:
    slots = slots_of(store)
    answering = slots.live
    store.point(green="2", live="2")
    slots.refresh()
    store.point(blue="")
    slots.refresh()
    assert (live(slots), slots.draining(), slots.freed) == ("2", ["1"], 0)
    assert answering is not None
    assert (answering.retrieve(store.vectors["1"][3:4], 5).rows >= 0).all()
    del answering
    slots.refresh()
    assert (slots.draining(), slots.freed) == ([], 1)


def test_a_candidate_that_failed_is_freed(store: Storefront, no_collector: None) -> None:
    class Broken(ReleaseOpener):
        def pending_reason(self, opened: Release, first: bool) -> str:
            raise ContractError("shard 1 could not load it")

    source = FolderSource(store.release)
    slots = Slots(source, opener=Broken(source))
    slots.refresh()
    assert slots.slots["blue"].state == "failed"
    slots.refresh()
    assert (slots.draining(), slots.freed) == ([], 1)


class Waiting(ReleaseOpener):
    """Whole versions that say they wait for something."""

    lacking = hindering = ""

    def pending_reason(self, opened: Release, first: bool) -> str:
        return self.lacking

    def flip_blocker(self, ready: Release) -> str:
        return self.hindering


def test_a_version_that_waits_for_others_says_so_and_goes_live_when_it_may(store: Storefront) -> None:
    source = FolderSource(store.release)
    opener = Waiting(source)
    slots = Slots(source, opener=opener)
    slots.refresh()
    opener.lacking = "shard 1 does not hold it"
    store.point(green="2", live="2")
    slots.refresh()
    green = slots.slots["green"]
    assert (live(slots), green.state, green.reason, green.release) == ("1", "loading", "shard 1 does not hold it", None)
    opened = green.pending
    opener.lacking, opener.hindering = "", "shard 0 is loading it again"
    slots.refresh()
    assert (live(slots), slots.slots["green"].release) == ("1", opened)
    assert "version 2 is not live yet: shard 0" in str(slots.describe()["error"])
    opener.hindering = ""
    slots.refresh()
    assert (live(slots), slots.describe()["error"]) == ("2", "")
