"""Settings: the environment before the .env file before the defaults; secrets never shown."""

from pathlib import Path

import pytest

from tasks.errors import SettingsError
from tasks.settings import Settings, masked, read_settings


@pytest.fixture
def dotenv(tmp_path: Path) -> Path:
    file = tmp_path / ".env"
    file.write_text("# a comment\nVITRINE_SHARDS=4\nVITRINE_SPARK_MASTER='local[8]'\n\nVITRINE_HOME=/from/file\nnonsense\n")
    return file


def test_the_environment_comes_before_the_file_before_the_default(dotenv: Path) -> None:
    found = read_settings({"VITRINE_SHARDS": "3"}, dotenv)
    assert found["shards"] == (3, "environment")
    assert found["spark_master"] == ("local[8]", ".env")
    assert found["recall_target"] == (0.95, "default")
    assert Settings.load({"VITRINE_SHARDS": "3"}, dotenv).shards == 3


def test_defaults_need_no_file_and_no_environment(tmp_path: Path) -> None:
    chosen = Settings.load({}, tmp_path / "none")
    assert chosen == Settings()
    assert chosen.store_uri == str(chosen.home / "data")
    assert chosen.catalog_uri.startswith("sqlite:///")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("APPROVAL", "true", True),
        ("APPROVAL", "0", False),
        ("APPROVAL", "", False),
        ("IMAGE_HOSTS", "a.example, b.example,", ("a.example", "b.example")),
        ("SERVING_URLS", "", ()),
        ("HOME", "/data/vitrine", Path("/data/vitrine")),
        ("RECALL_TARGET", "0.9", 0.9),
        ("STORE", "s3://bucket/prefix/", "s3://bucket/prefix/"),
    ],
)
def test_each_kind_of_value_is_read(tmp_path: Path, name: str, text: str, value: object) -> None:
    assert getattr(Settings.load({f"VITRINE_{name}": text}, tmp_path / "none"), name.lower()) == value


@pytest.mark.parametrize(("name", "text"), [("SHARDS", "two"), ("APPROVAL", "perhaps"), ("RECALL_TARGET", "")])
def test_a_value_that_makes_no_sense_is_named(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"VITRINE_{name}='{text}' is not"):
        Settings.load({f"VITRINE_{name}": text}, tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("admin_token", "abc", "********"),
        ("admin_token", "", ""),
        ("redis_url", "redis://:secret@h:6379", "********"),
        ("catalog", "postgresql://shop:secret@db:5432/shop", "postgresql://shop:********@db:5432/shop"),
        ("serving_urls", ("http://a", "http://b"), "http://a, http://b"),
        ("shards", 2, "2"),
    ],
)
def test_secrets_are_masked(name: str, value: object, shown: str) -> None:
    assert masked(name, value) == shown


def test_a_trailing_slash_of_the_store_does_not_double(tmp_path: Path) -> None:
    assert Settings.load({"VITRINE_STORE": "s3://b/p/"}, tmp_path / "none").store_uri == "s3://b/p"
