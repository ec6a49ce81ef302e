"""What was last read of a registry, on disk."""

from pathlib import Path

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
