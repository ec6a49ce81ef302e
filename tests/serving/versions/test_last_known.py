"""What was last read of a registry, on disk."""

import stat
from pathlib import Path

import pytest

from serving.versions.last_known import LastKnown

ALIASES = {"blue": "3", "green": "4", "live": "3"}


def test_it_is_found_again_and_only_what_the_aliases_name_is_kept(tmp_path: Path) -> None:
    last = LastKnown(tmp_path / "last_known", "http://user:secret@mlflow:5000")
    assert last.aliases() == {}
    assert last.version("3") is None
    for version in "234":
        last.keep_version(version, '{"id": "ü"}'.encode(), {"verdict": "passed"})
    last.keep_aliases(ALIASES)
    again = LastKnown(tmp_path / "last_known", "http://user:changed@mlflow:5000")
    assert again.aliases() == ALIASES
    assert again.version("3") == ('{"id": "ü"}'.encode(), {"verdict": "passed"})
    assert again.version("2") is None, "no alias names it"
    assert not any("secret" in path.read_text() for path in tmp_path.rglob("*.json"))


def test_another_registry_a_damaged_file_and_a_folder_that_cannot_be_written_know_nothing(tmp_path: Path) -> None:
    last = LastKnown(tmp_path, "http://mlflow:5000")
    last.keep_aliases(ALIASES)
    assert LastKnown(tmp_path, "http://other:5000").aliases() == {}
    (tmp_path / "aliases.json").write_text("{")
    assert last.aliases() == {}
    (tmp_path / "file").write_text("")
    nowhere = LastKnown(tmp_path / "file", "http://mlflow:5000")
    nowhere.keep_aliases(ALIASES)  # a warning, and no more
    assert nowhere.aliases() == {}


def test_bytes_come_back_as_they_were_and_the_folder_is_its_owners(tmp_path: Path) -> None:
    last = LastKnown(tmp_path / "last_known", "http://mlflow:5000")
    damaged = bytes(range(256))
    last.keep_version("3", damaged, {})
    assert last.version("3") == (damaged, {}), "what is damaged is refused by its checksum, not by an error of decoding"
    assert stat.S_IMODE((tmp_path / "last_known").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "text", ["[1]", "null", "{}", '{"registry": "http://mlflow:5000", "aliases": [], "manifest": "{}", "tags": 1}']
)
def test_a_file_of_another_shape_knows_nothing(tmp_path: Path, text: str) -> None:
    for name in ("aliases", "3"):
        (tmp_path / f"{name}.json").write_text(text)
    last = LastKnown(tmp_path, "http://mlflow:5000")
    assert (last.aliases(), last.version("3")) == ({}, None)


def test_a_file_that_cannot_be_removed_disturbs_nobody(tmp_path: Path) -> None:
    (tmp_path / "2.json").mkdir()
    last = LastKnown(tmp_path, "http://mlflow:5000")
    last.keep_aliases(ALIASES)
    assert last.aliases() == ALIASES
