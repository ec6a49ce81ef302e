"""Settings are explained where they are defined, and the committed table says what the code says."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serving.settings import ServingSettings
from tasks.cli import app
from tasks.settings import Settings, variable
from tasks.settings_page import BEGIN, END, PAGE, explain, main, settings_table, with_table

ALL = [(of, spec.name) for of in (Settings, ServingSettings) for spec in dataclasses.fields(of)]


@pytest.mark.parametrize(("of", "name"), ALL)
def test_each_setting_has_an_area_a_meaning_and_an_example_that_is_read(of: Any, name: str, tmp_path: Path) -> None:
    about = explain(of)[name]
    assert about.area
    assert about.means
    assert about.example
    assert not about.means.endswith(".")
    chosen = {about.variable: about.example}
    found = Settings.load(chosen, tmp_path / "none", home_file=False) if of is Settings else ServingSettings.load(chosen)
    assert getattr(found, name) != getattr(of(), name), f"the example {about.example!r} is the default"


def test_the_committed_table_is_that_of_the_code() -> None:
    assert PAGE.read_text() == with_table(PAGE.read_text()), "run make docs"


def test_the_table_takes_the_place_of_the_last_one_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "settings.md"
    page.write_text(f"before\n{BEGIN}\nan old table\n{END}\nafter\n")
    main(page)
    once = page.read_text()
    main(page)
    assert page.read_text() == once
    assert once.startswith(f"before\n{BEGIN}\n| setting |")
    assert once.endswith(f"{END}\nafter\n")
    assert "an old table" not in once
    assert all(once.count(f"| `{variable(name)}` |") >= 1 for _, name in ALL)
    assert "<project>/.vitrine" in once


def test_a_bar_or_a_tag_in_a_meaning_breaks_no_row() -> None:
    rows = settings_table().splitlines()
    assert {row.replace("\\|", "").count("|") for row in rows} == {5}
    outside_code = [part for row in rows for part in row.split("`")[::2]]
    assert not any("<" in part for part in outside_code)


def test_a_replicas_settings_are_shown_as_its_environment_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRINE_ROLE", "gateway")
    monkeypatch.setenv("VITRINE_ADMIN_TOKEN", "a-long-token")
    told = CliRunner().invoke(app, ["settings", "--serving", "--json"])
    records = {one["setting"]: one for one in json.loads(told.output)}
    assert (records["VITRINE_QUEUE"]["value"], records["VITRINE_QUEUE"]["from"]) == ("176", "default")
    assert records["VITRINE_ROLE"]["from"] == "environment"
    assert records["VITRINE_ADMIN_TOKEN"]["value"] == "********"


def test_a_word_chooses_settings_and_one_that_chooses_none_is_an_error() -> None:
    told = CliRunner().invoke(app, ["settings", "held-out"])
    assert "VITRINE_MIN_HELD_OUT = 20" in told.output
    assert "VITRINE_HOME" not in told.output
    assert "no setting has 'zebra'" in str(CliRunner().invoke(app, ["settings", "zebra"]).exception)


def test_a_replicas_setting_that_stops_its_start_is_an_error_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRINE_PORT", "many")
    assert "VITRINE_PORT='many' is not a whole number" in str(CliRunner().invoke(app, ["settings", "--serving"]).exception)
