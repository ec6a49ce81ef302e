"""What the documentation names is there: links, headings, files, make targets, commands with their options, settings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from serving.settings import REMOVED, ServingSettings
from tasks.cli import app
from tasks.settings import PROJECT, Settings, variable
from tasks.settings_page import explain

DECISIONS = PROJECT / "docs" / "decisions"
PAGES = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((PROJECT / "docs").rglob("*.md"))
CURRENT = [page for page in PAGES if page.parent != DECISIONS]
"""All but the decision records, which tell of what was."""
STANDING = [DECISIONS / name for name in re.findall(r"\]\((\d[^)]*)\)[^|]*\| standing", (DECISIONS / "README.md").read_text())]
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
SOURCE = re.compile(r"\b(?:tasks|serving|dags|plugins|tests|docker)/[\w/.-]*\.(?:py|yaml|sh|json|md)\b")


def shown(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def headings(page: Path) -> set[str]:
    """Anchors of a page, as forges make them of its headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Commands and groups of commands by their names, such as "release list"."""
    for name, command in group.commands.items():
        yield " ".join((*names, name)), command
        if is_group(command):
            yield from commands(command, (*names, name))


def is_group(command: Any) -> bool:
    return hasattr(command, "commands")


@pytest.fixture(scope="module")
def cli() -> dict[str, Any]:
    return dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_relative_link_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    broken = []
    for target in (a or b for a, b in LINK.findall(page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in headings(there)):
            broken.append(target)
    assert not broken, f"{shown(page)}: {', '.join(broken)}"


@pytest.mark.parametrize("page", [*CURRENT, *STANDING], ids=shown)
def test_every_source_file_that_is_named_exists(page: Path) -> None:
    assert [name for name in SOURCE.findall(page.read_text()) if not (PROJECT / name).exists()] == []


@pytest.mark.parametrize("page", CURRENT, ids=shown)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = re.findall(r"^([a-z0-9%-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    benchmarks = {f.stem.removeprefix("bench_") for f in (PROJECT / "tests" / "benchmarks").glob("bench_*.py")}
    images = {f.suffix.removeprefix(".") for f in (PROJECT / "docker").glob("Dockerfile.*")}
    known = {*targets, *(f"bench-{name}" for name in benchmarks), *(f"image-{name}" for name in images)}
    known |= {f"e2e-{f.stem.removeprefix('test_')}" for f in (PROJECT / "tests" / "e2e").glob("test_*.py")}
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z0-9_-]*)(?![\w<-])", page.read_text(), re.MULTILINE))
    assert named - known == set()


@pytest.mark.parametrize("page", CURRENT, ids=shown)
def test_every_vitrine_command_and_option_that_is_named_exists(page: Path, cli: dict[str, Any]) -> None:
    wrong = []
    for line in re.findall(r"(?:`|^|bin/|with: )vitrine ([a-z][^`\n#]*)", page.read_text(), re.MULTILINE):
        words = re.findall(r"(?<!\S)[a-z][a-z-]*(?!\S)|--[a-z-]+", line)
        name = next((n for n in (" ".join(words[:2]), words[0] if words else "") if n in cli), None)
        if name is None or (is_group(cli[name]) and len(words) > 1):
            wrong.append(f"vitrine {line.strip()}")
            continue
        known = {option for p in cli[name].params for option in p.opts}
        wrong += [f"vitrine {name} {option}" for option in words if option.startswith("--") and option not in known]
    assert wrong == []


@pytest.mark.parametrize("page", CURRENT, ids=shown)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    known = {variable(name) for of in (Settings, ServingSettings) for name in explain(of)}
    known |= {variable(name) for name in REMOVED}
    named = set(re.findall(r"VITRINE_[A-Z0-9_]*[A-Z0-9]", page.read_text()))
    assert named - known == set()


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_a_page_is_text_alone(page: Path) -> None:
    assert [hex(ord(c)) for c in page.read_text() if not c.isprintable() and c not in "\n\u00a0"] == []


def test_every_dag_has_a_row_in_the_table_of_dags() -> None:
    dags = {f.stem for f in (PROJECT / "dags").glob("*.py") if "\n@dag(" in f.read_text()}
    rows = re.findall(
        r"^\| `(\w+)` \|", (PROJECT / "docs" / "operate" / "pipeline.md").read_text().partition("## ")[0], re.MULTILINE
    )
    assert sorted(rows) == sorted(dags)


def test_the_first_run_in_ones_own_airflow_unpauses_every_dag_but_the_training() -> None:
    page = (PROJECT / "docs" / "operate" / "into-your-airflow.md").read_text()
    dags = {f.stem for f in (PROJECT / "dags").glob("*.py") if "\n@dag(" in f.read_text()}
    (named,) = re.findall(r"for dag in ([\w ]+);", page)
    assert set(named.split()) == dags - {"train_encoder"}


@pytest.mark.parametrize("page", CURRENT, ids=shown)
def test_an_image_is_built_by_a_whole_command(page: Path) -> None:
    assert "--build-arg" not in page.read_text()


def test_every_decision_is_in_the_index() -> None:
    index = (DECISIONS / "README.md").read_text()
    assert [f.name for f in DECISIONS.glob("[0-9]*.md") if f"]({f.name})" not in index] == []


def test_the_benchmarks_stay_one_page() -> None:
    assert len((PROJECT / "docs" / "benchmarks.md").read_text().splitlines()) <= 150
