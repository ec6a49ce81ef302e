"""Settings: the environment before the .env file before the defaults; secrets never shown."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tasks.cli import app
from tasks.errors import SettingsError
from tasks.home_file import write_home_file
from tasks.masking import mask
from tasks.settings import HOME_FILE, Settings, as_variables, read_settings


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
    assert found["home"] == (Path("/from/file"), ".env")
    assert Settings.load({"VITRINE_SHARDS": "3"}, dotenv).shards == 3


def test_defaults_need_no_file_and_no_environment(tmp_path: Path) -> None:
    chosen = Settings.load({"VITRINE_HOME": str(tmp_path)}, tmp_path / "none")
    assert chosen == replace(Settings(), home=tmp_path)
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


@pytest.mark.parametrize("name", ["VITRINE_ADMIN_TOKEN", "VITRINE_ENGINE_TOKEN", "MLFLOW_TRACKING_TOKEN"])
def test_a_secret_that_no_header_can_carry_is_named_and_not_shown(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: character 7 of it is a line break, which no HTTP header") as raised:
        Settings.load({name: "hidden\nhidden"}, tmp_path / "none")
    assert "hidden" not in str(raised.value)
    assert Settings.load({"VITRINE_ADMIN_TOKEN": "a token\n"}, tmp_path / "none").admin_token == "a token"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("admin_token", "abc", "********"),
        ("admin_token", "", ""),
        ("redis_url", "redis://:secret@h:6379", "********"),
        ("catalog", "postgresql://shop:secret@db:5432/shop", "postgresql://********@db:5432/shop"),
        ("serving_urls", ("http://a", "http://b"), "http://a, http://b"),
        ("shards", 2, "2"),
    ],
)
def test_secrets_are_masked(name: str, value: object, shown: str) -> None:
    assert mask(name, value) == shown


def test_a_trailing_slash_of_the_store_does_not_double(tmp_path: Path) -> None:
    assert Settings.load({"VITRINE_STORE": "s3://b/p/"}, tmp_path / "none").store_uri == "s3://b/p"


def strange(home: Path) -> Settings:
    """Every setting as nobody has it, texts with what a line or a shell could trip over."""
    odd = {"bool": lambda v: not v, "int": lambda v: v + 3, "float": lambda v: v + 0.125, "tuple": lambda v: ("http://a", "b c")}
    texts = ["a'b", "'quoted'", '"', " spaces inside ", "#=x=y", "$HOME `id`", "ü"]
    values = {}
    for n, spec in enumerate(dataclasses.fields(Settings)):
        kind = type(spec.default).__name__
        values[spec.name] = odd[kind](spec.default) if kind in odd else texts[0 if spec.metadata["header"] else n % len(texts)]
    return Settings(**values | {"home": home})


def test_what_is_written_below_home_is_read_as_it_was(tmp_path: Path) -> None:
    home = {"VITRINE_HOME": str(tmp_path)}
    wanted = strange(tmp_path)
    path = write_home_file(wanted, ())
    assert path == tmp_path / HOME_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == [HOME_FILE]
    assert Settings.load(home, tmp_path / "none") == wanted
    assert Settings.load(as_variables(wanted), tmp_path / "none", home_file=False) == wanted
    assert Settings.load(home, tmp_path / "none", home_file=False) == replace(Settings(), home=tmp_path)
    write_home_file(replace(Settings(), home=tmp_path), ("mlflow_uri",))
    assert [line.partition("=")[0] for line in path.read_text().splitlines()[1:]] == ["VITRINE_MLFLOW_URI"]


def test_the_home_file_comes_after_the_environment_and_dotenv_and_is_named(
    tmp_path: Path, dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {"admin_token": "a-long-token", "shards": 7, "bake_s": 1.5, "spark_master": "local[9]"}
    write_home_file(replace(Settings(), home=tmp_path, **shown), ())
    found = read_settings({"VITRINE_HOME": str(tmp_path), "VITRINE_BAKE_S": "2"}, dotenv)
    place = str(tmp_path / HOME_FILE)
    assert found["admin_token"] == ("a-long-token", place)
    assert (found["bake_s"], found["shards"], found["spark_master"]) == ((2.0, "environment"), (4, ".env"), ("local[8]", ".env"))
    monkeypatch.setenv("VITRINE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "250")
    told = CliRunner().invoke(app, ["settings"]).output
    assert "********" in told
    assert place in "".join(told.split()), told
    assert "a-long-token" not in told


def test_a_home_file_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="VITRINE_AIRFLOW_PASSWORD has more than one line"):
        write_home_file(replace(Settings(), home=tmp_path, airflow_password="a\nb"), ())
    (tmp_path / HOME_FILE).write_bytes(b"\xff\xfe=")
    with pytest.raises(SettingsError, match="the settings in it cannot be read"):
        Settings.load({"VITRINE_HOME": str(tmp_path)}, tmp_path / "none")
