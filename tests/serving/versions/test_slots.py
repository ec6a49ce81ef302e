"""Versions in a replica: loaded beside, verified, flipped by reference; what is damaged never goes live."""

from pathlib import Path

import pytest

from serving.versions.slots import Slots
from tests.releases import set_aliases, source


@pytest.fixture
def slots(home: Path) -> Slots:
    slots = Slots(source(home))
    slots.refresh()
    return slots


def test_the_live_version_is_loaded_and_a_candidate_beside_it(slots: Slots, home: Path) -> None:
    assert slots.live is not None
    assert (slots.live.version, slots.live_slot) == ("1", "blue")
    before = slots.live
    set_aliases(home, live="1", blue="1", green="2")
    slots.refresh()
    assert slots.slots["green"].state == "ready"
    assert slots.live is before
    set_aliases(home, live="2", blue="1", green="2")
    slots.refresh()
    assert slots.live.version == "2"
    assert slots.slots["blue"].release is before
    set_aliases(home, live="1", blue="1", green="2")
    slots.refresh()
    assert slots.live is before
    assert slots.flips == 3


@pytest.mark.parametrize(
    ("aliases", "words"),
    [
        ({"blue": "1", "green": "2", "live": "9"}, "the alias live names version 9, which is in no slot (blue names 1, green names 2)"),
        ({"blue": "1"}, "the alias live names no version"),
        ({"blue": "7", "live": "7"}, "version 7 is not ready: slot blue is failed"),
    ],
)  # fmt: skip
def test_what_is_not_live_says_why(home: Path, aliases: dict[str, str], words: str) -> None:
    set_aliases(home, **aliases)
    slots: Slots = Slots(source(home))
    slots.refresh()
    assert slots.describe()["error"] == words
    assert slots.not_live_reason() == f"no index version is live on this replica yet: {words}"


def test_what_goes_on_instead_of_the_version_that_is_wanted_is_said(slots: Slots, home: Path) -> None:
    set_aliases(home, live="9", blue="1")
    slots.refresh()
    assert str(slots.describe()["error"]).endswith("(blue names 1, green names none); version 1 goes on")
    set_aliases(home, live="1", green="2")
    slots.refresh()
    assert slots.describe()["error"] == ""


def test_a_version_that_was_never_warmed_does_not_go_live(slots: Slots, home: Path) -> None:
    set_aliases(home, live="2", blue="1")
    slots.refresh()
    assert slots.live is not None
    assert slots.live.version == "1"


def _damage(home: Path, which: str) -> None:
    manifest = source(home).manifest("2")
    release = home / "release"
    index = manifest.segments[0].index
    assert index is not None
    encoder = release / "encoders" / manifest.encoder.manifest.sha256
    if which == "flipped byte":
        path = release / "files" / index.sha256
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif which == "truncated":
        path = release / "files" / manifest.segments[1].table.sha256
        path.write_bytes(path.read_bytes()[:-10])
    elif which == "missing segment":
        (release / "files" / index.sha256).unlink()
    elif which == "another encoder":
        wrong = manifest.encoder.model_copy(update={"document_fingerprint": "f" * 64})
        (release / "2" / "manifest.json").write_text(manifest.model_copy(update={"encoder": wrong}).model_dump_json())
    elif which == "encoder file":
        (encoder / "student.fp32.onnx").write_bytes(b"x")
    elif which == "golden of another version":
        other = source(home).manifest("1").golden
        (release / "2" / "manifest.json").write_text(manifest.model_copy(update={"golden": other}).model_dump_json())
    else:
        (release / "2" / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("flipped byte", "corrupt"), ("truncated", "truncated"), ("missing segment", "missing"), ("another encoder", "fingerprint"),
        ("encoder file", "bytes"), ("golden of another version", "golden answers are not reproduced"), ("no manifest", "IndexManifest"),
    ],
)  # fmt: skip
def test_a_damaged_version_fails_with_its_reason_and_the_live_one_stays(slots: Slots, home: Path, which: str, words: str) -> None:
    _damage(home, which)
    set_aliases(home, live="2", blue="1", green="2")
    slots.refresh()
    green = slots.slots["green"]
    assert green.state == "failed"
    assert words in green.reason
    assert slots.live is not None
    assert slots.live.version == "1"


def test_a_registry_that_is_away_disturbs_nothing(slots: Slots, home: Path) -> None:
    (home / "release" / "aliases.json").write_text("not json")
    slots.refresh()
    assert "does not answer" in slots.error
    assert slots.live is not None
    set_aliases(home, live="1", blue="1")
    slots.refresh()
    assert slots.error == ""
