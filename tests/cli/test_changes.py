"""`vitrine changes`: what a person sends, sees and revives."""

import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tasks.catalog.changes.event import read_event
from tasks.catalog.changes.source import open_changes
from tasks.cli import app
from tasks.errors import CatalogError
from tasks.home_file import write_home_file
from tasks.settings import Settings
from tests.catalogs import small_catalog


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_catalog(tmp_path / "shop", 5)
    monkeypatch.setenv("VITRINE_HOME", str(tmp_path))
    monkeypatch.setenv("VITRINE_CATALOG", str(tmp_path / "shop"))
    monkeypatch.setenv("VITRINE_CHANGES", "outbox:")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["changes", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def sent(home: Path) -> list[dict]:
    with open_changes("outbox:", str(home / "shop"), home) as source:
        return [json.loads(m.text) for m in sorted(source.receive(100, 0), key=lambda m: int(m.handle))]


def test_products_are_sent_as_the_catalogue_has_them_or_as_gone(home: Path) -> None:
    assert "2 upserts sent" in run("send", "p001", "p003")
    assert "1 deletes sent" in run("send", "--delete", "p009")
    first, second, gone = sent(home)
    assert (first["product_id"], second["product_id"]) == ("p001", "p003")
    assert first["product"]["title"] == "product 1"
    assert first["product"]["category"] == ["kind 1", "leaf 1"]
    assert (gone["kind"], gone["product_id"]) == ("delete", "p009")
    assert "3 wait, 0 dead letters" in run("waiting")


def test_a_file_of_products_is_sent_with_its_own_times(home: Path) -> None:
    (home / "new.csv").write_text("product_id,title,image,price,updated_at\nn1,New,images/1.jpg,3.5,2026-11-20 10:00:00\n")
    run("send", str(home / "new.csv"))
    (event,) = sent(home)
    assert event["updated_at"] == "2026-11-20T10:00:00.000000Z"
    assert event["product"]["price"] == 3.5
    read_event(json.dumps(event), read_event(json.dumps(event), _later()).updated_at)


def _later():  # type: ignore[no-untyped-def]
    from datetime import UTC, datetime

    return datetime(2027, 1, 1, tzinfo=UTC)


def test_dead_letters_are_listed_and_requeued(home: Path) -> None:
    run("send", "p001")
    with open_changes("outbox:", str(home / "shop"), home) as source:
        source.dead_letter([(source.receive(1, 0)[0], "no such colour")])
    assert "no such colour" in run("dead")
    assert "1 dead letters sent" in run("requeue")
    assert "0 dead letters sent" in run("revive"), "the name before still works"
    assert "requeue" in run("--help")
    assert "revive" not in run("--help")
    assert "1 wait, 0 dead letters" in run("waiting")


def test_what_cannot_be_sent_is_one_clear_sentence(home: Path) -> None:
    with pytest.raises(CatalogError, match="the catalogue has no product 'p777'"):
        run("send", "p777")
    with pytest.raises(CatalogError, match="there is no such file"):
        run("send", str(home / "none.csv"))
    with pytest.raises(CatalogError, match="only a database can capture"):
        run("capture")


@pytest.mark.parametrize(
    "command", [["waiting"], ["dead"], ["requeue"], ["send", "p001"], ["send", "--delete", "p001"], ["capture"]]
)
def test_no_command_makes_a_database_of_a_catalogue_that_is_not_there(
    home: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("VITRINE_CATALOG", f"sqlite:///{home / 'none' / 'shop.db'}")
    with pytest.raises(CatalogError, match="there is no such database; name the catalogue with VITRINE_CATALOG"):
        run(*command)
    assert not (home / "none").exists()


@pytest.mark.parametrize("command", ["waiting", "dead", "requeue"])
@pytest.mark.parametrize("catalogue", ["folder", "database"])
def test_looking_at_the_outbox_writes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch, command: str, catalogue: str) -> None:
    if catalogue == "database":
        monkeypatch.setenv("VITRINE_CATALOG", f"sqlite:///{home / 'shop.db'}")
        with contextlib.closing(sqlite3.connect(home / "shop.db")) as shop:
            shop.execute("CREATE TABLE products (product_id TEXT)")
    before = {p: p.stat().st_size for p in home.rglob("*")}
    run(command)
    assert {p: p.stat().st_size for p in home.rglob("*")} == before


def test_the_catalogue_of_a_running_demo_is_the_one_that_is_spoken_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITRINE_CATALOG")
    write_home_file(replace(Settings.load(), catalog=str(home / "shop")), ())
    assert f"(catalogue {home / 'shop'})" in run("send", "p001").replace("\n", "")
    assert "1 wait" in run("waiting")
