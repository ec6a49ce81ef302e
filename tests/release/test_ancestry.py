"""Which version the next one builds on, and whose changes it must take along."""

import pytest

from tasks.registry import INDEX_MODEL, Version
from tasks.release.ancestry import covered_versions, parent_version, uncovered_versions
from tasks.release.retention.policy import Retention, kept_versions


def version(
    number: int, parent: int = 0, carried: str = "", changes: int = 0, verdict: str = "passed", aliases: str = ""
) -> Version:
    tags = {"verdict": verdict, "parent": str(parent or ""), "carried": carried, "changes": str(changes or "")}
    given = tuple(aliases.split()) if aliases else ()
    return Version(INDEX_MODEL, str(number), f"run{number}", {k: v for k, v in tags.items() if v}, given, "", number)


@pytest.mark.parametrize(
    ("aliases", "expected"),
    [
        ({}, None),
        ({"candidate": "2"}, "2"),
        ({"live": "1"}, "1"),
        ({"live": "1", "candidate": "2"}, "2"),
        ({"live": "2", "candidate": "2", "previous": "1"}, "2"),
        ({"live": "1", "candidate": "2", "previous": "2"}, "1"),  # it was live and somebody rolled back
        ({"live": "1", "candidate": "3"}, "1"),  # its bake failed
        ({"live": "2", "candidate": "1"}, "2"),  # an older one was promoted by hand meanwhile
    ],
)
def test_a_refresh_builds_on_what_is_live_or_on_its_way(aliases: dict[str, str], expected: str | None) -> None:
    versions = [
        version(1),
        version(2, 1, changes=3),
        version(3, 2, changes=1, verdict="failed: after it went live, 5 of 20 searches failed"),
    ]
    found = parent_version(versions, aliases)
    assert (found.version if found else None) == expected


def test_a_version_covers_its_ancestors_and_what_they_carried() -> None:
    versions = [
        version(1),
        version(2, 1, changes=1),
        version(3, 1, changes=1),
        version(4, 2, "3", 2),
        version(5),
        version(6, 5, "4", 1),
    ]
    assert covered_versions("6", versions) == {"6", "5", "4", "3", "2", "1"}
    assert covered_versions("7", versions) == {"7"}


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        ("6", []),
        ("5", ["6"]),  # it covers 4, and so 3 and 2
        ("4", ["6"]),
        ("2", ["6"]),
        ("9", ["8"]),  # it covers 6 and all of its
    ],
)
def test_what_a_parent_does_not_cover_is_taken_along(parent: str, expected: list[str]) -> None:
    versions = [
        version(1), version(2, 1, changes=1), version(3, 1, changes=1), version(4, 2, "3", 2), version(5), version(6, 5, "4", 1),
        version(7, 6, verdict="failed"), version(9),
    ]  # fmt: skip
    versions += [version(8, 6, changes=1)] if parent == "9" else []
    assert [v.version for v in uncovered_versions(parent, versions)] == expected


def test_retention_keeps_changes_that_nobody_has_taken_along_yet() -> None:
    versions = [version(1), version(2, 1, changes=5), *(version(n) for n in range(3, 9)), version(9, aliases="live")]
    assert "2" in kept_versions(versions, Retention(versions=2), 0.0)
    versions.append(version(10, 9, carried="2", changes=1, aliases="candidate"))
    assert "2" not in kept_versions(versions, Retention(versions=2), 0.0)
