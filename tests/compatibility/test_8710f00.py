"""What commit 8710f00 made still loads, answers as it did, is refreshed and is rolled back to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility.entry_points import TOKEN, Live, product_id, replica, replica_here, search

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("compatibility")]

AS_BEFORE = 1e-3
"""How far a score may lie from the one that was recorded."""
ANSWER = ("flat", "ivf_flat", "ivf_fs_fp16", "hnsw_flat", "hnsw_sq8", "hnsw_bf16", "hnsw_fp16")
REFRESHED = ("ivf_rabitq", "ivf_rabitq_sq8", "ivf_rabitq_fp16", "ivf_pq", "ivf_fs_sq8", "hnsw16_fp16")
"""Together every family there was. Those that are built no more, and one of each kind of store, are refreshed as well; the rows of
graphs lie in groups."""


@pytest.fixture(scope="module")
def served(home: Path, mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A replica that follows the home's aliases. It keeps no queries: promotions replay held-out photos, the same in every run."""
    with replica(tmp_path_factory.mktemp("replica"), mlflow_uri=mlflow_uri, admin_token=TOKEN, sample_rate="0") as url:
        yield url


@pytest.fixture
def live(home: Path, mlflow_uri: str, served: str, monkeypatch: pytest.MonkeyPatch) -> Live:
    """The home with its replica; its settings are in the environment."""
    made = Live(home, mlflow_uri, served)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def check(url: str, home: Path, expected: dict[str, Any], version: str) -> None:
    """Every query is answered as was recorded: the same products and scores, those of nearly equal scores in any order.

    The first may be another with a higher score: since then a product whose own picture is the photo is lifted above all others.
    """
    for query, before in zip(expected["queries"], expected["answers"][version], strict=True):
        now = search(url, query, home)
        first, score = now[0]
        assert score >= dict(before).get(first, 0.0) - AS_BEFORE, query
        rest, rest_before = ([s for p, s in answer if p != first] for answer in (now, before))
        count = min(len(rest), len(rest_before))
        assert rest[:count] == pytest.approx(rest_before[:count], abs=AS_BEFORE), query
        last = min(s for _, s in before) + 2 * AS_BEFORE
        assert {p for p, s in now if s > last} <= {p for p, _ in before} | {first}, query
        assert {p for p, s in before if s > last} <= {p for p, _ in now}, query


def test_the_exported_release_answers_as_it_did(home: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    with replica(tmp_path, release=str(home / "release")) as url:
        check(url, home, expected, "hourly")


def test_the_live_version_answers_is_refreshed_and_rolled_back_from(live: Live, served: str, expected: dict[str, Any]) -> None:
    """Version 3 is an hourly one: the next is made on top of its deltas and tombstones."""
    versions = expected["versions"]
    assert {n: live.aliases()[n] for n in ("live", "previous")} == {"live": versions["hourly"], "previous": versions["second"]}
    check(served, live.home, expected, "hourly")

    live.send(live.upsert(6000, seed=6000), live.upsert(108, seed=6001), live.delete(7))
    made = live.refresh("refreshed")
    live.command("release", "promote", made["version"])
    assert found(served, live, 6000, 1)[0] == product_id(6000)
    assert product_id(7) not in found(served, live, 7, 200)

    live.command("release", "rollback")
    assert live.aliases()["live"] == versions["hourly"]
    check(served, live.home, expected, "hourly")
    live.command("release", "rollback", "--to", versions["second"])
    check(served, live.home, expected, "second")


@pytest.mark.parametrize("family", ANSWER)
def test_a_version_of_any_family_there_was_answers_as_it_did(
    family: str, live: Live, expected: dict[str, Any], tmp_path: Path
) -> None:
    live.command("release", "export", str(tmp_path / "release"), "--version", expected["versions"][family])
    with replica_here(tmp_path / "release") as url:
        check(url, live.home, expected, family)


@pytest.mark.parametrize("family", REFRESHED)
def test_a_version_of_another_family_goes_live_is_refreshed_and_rolled_back_to(
    family: str, live: Live, served: str, expected: dict[str, Any]
) -> None:
    version = expected["versions"][family]
    live.name_candidate(version)
    live.command("release", "promote", version)
    check(served, live.home, expected, family)

    live.send(live.upsert(7000, seed=7000), live.upsert(5, title="changed"), live.delete(13))
    made = live.refresh(f"refreshed-{family}")
    assert live.registry.index_manifest(made["version"]).parent == version
    live.command("release", "promote", made["version"])
    assert found(served, live, 7000, 1)[0] == product_id(7000)
    assert product_id(13) not in found(served, live, 13, 200)

    live.command("release", "rollback")
    assert live.aliases()["live"] == version
    check(served, live.home, expected, family)


def found(url: str, live: Live, number: int, k: int) -> list[str]:
    """The products that are found by the picture of a product."""
    name = f"images/new-{number}.png" if number >= 6000 else f"photos/{number}-val.png"
    return [p for p, _ in search(url, {"photo": name}, live.home)][:k]
