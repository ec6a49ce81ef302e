"""The snapshot suite: a sound catalogue passes, and each fault is named with what was observed and sample ids."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.validate.expectations import Validation
from tasks.validate.snapshot import SnapshotLimits, check_snapshot
from tests.catalogs import write_table

NOW = datetime(2026, 11, 25, tzinfo=UTC)
ROWS = 40


def rows(count: int = ROWS) -> list[dict]:
    return [
        {
            "product_id": f"p{n:03d}", "title": f"Product {n}", "image": f"images/{n}.jpg", "price": n, "category": "a > b",
            "popularity": 0.5, "updated_at": "2026-11-20 12:00:00",
        }
        for n in range(count)
    ]  # fmt: skip


def taken(folder: Path, name: str, products: list[dict]) -> Snapshot:
    (folder / name).mkdir()
    write_table(folder / name / "products.csv", products)
    return take_snapshot(str(folder / name), str(folder / "snapshots"), name)


def check(folder: Path, now: Snapshot, before: Snapshot | None = None, limits: SnapshotLimits = SnapshotLimits()) -> Validation:  # noqa: B008
    return check_snapshot(now, before, folder / "docs", limits, NOW)


def test_a_sound_catalogue_passes_and_its_docs_are_pages(tmp_path: Path) -> None:
    before = taken(tmp_path, "before", rows())
    found = check(tmp_path, taken(tmp_path, "now", rows(36)), before, SnapshotLimits(max_age_days=10))
    assert found.passed, found.sentence
    assert found.sentence == f"snapshot: {found.checked} expectations hold"
    assert found.checked >= 15
    assert (found.docs / "index.html").is_file()
    assert "<html" in (found.docs / found.page).read_text()[:300]


def test_each_fault_of_a_row_is_named_with_the_products(tmp_path: Path) -> None:
    broken = rows()
    broken[3]["price"] = -1
    broken[5]["price"] = 1e9
    broken[7]["category"] = " > ".join("abcdefghijklmnop")
    broken[9]["title"] = "x" * 3000
    broken[11]["popularity"] = -3
    broken[13]["image"] = "gopher://old/13.jpg"
    broken[15]["updated_at"] = "2026-12-24 00:00:00"
    found = check(tmp_path, taken(tmp_path, "now", broken))
    said = found.sentence
    for part in ("price: below 0", "p003", "p005", "category", "p007", "title", "p009", "popularity", "p011", "p013",
                 "unusable_row_share", "odd_uri_share", "newest_change_days_ago"):  # fmt: skip
        assert part in said, f"{part} is not in: {said}"
    assert "\n" not in said
    assert len(found.failures) == 3
    assert "unusable_row_share" in (found.docs / found.page).read_text()


def test_every_row_is_looked_at_though_few_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.validate.snapshot.SAMPLE_ROWS", 4)
    broken = rows()
    broken[17]["price"] = -1
    found = check(tmp_path, taken(tmp_path, "now", broken))
    assert len(found.failures) == 1
    assert "p017" in found.sentence


def test_a_catalogue_that_shrank_is_refused_with_the_names_of_what_is_missing(tmp_path: Path) -> None:
    before = taken(tmp_path, "before", rows())
    now = taken(tmp_path, "now", rows(30))
    found = check(tmp_path, now, before)
    assert "dropped_share" in found.sentence
    assert "missing now: p030, p031, p032" in found.sentence
    assert "VITRINE_MOST_DROPPED" in found.sentence
    assert check(tmp_path, now, before, SnapshotLimits(most_dropped=0.3)).passed


def test_as_many_products_of_other_ids_are_not_the_same_catalogue(tmp_path: Path) -> None:
    renamed = [r | {"product_id": f"q{n}"} for n, r in enumerate(rows())]
    found = check(tmp_path, taken(tmp_path, "now", renamed), taken(tmp_path, "before", rows()))
    assert [f for f in found.failures if "gone_share" in f]
    assert not [f for f in found.failures if "dropped_share" in f]


def test_a_restored_backup_and_a_catalogue_that_stands_still_are_not_fresh(tmp_path: Path) -> None:
    old = [r | {"updated_at": "2026-11-01 00:00:00"} for r in rows()]
    found = check(tmp_path, taken(tmp_path, "now", old), taken(tmp_path, "before", rows()), SnapshotLimits(max_age_days=7))
    assert len(found.failures) == 2
    assert "days_older_than_last" in found.sentence
    assert "newest_change_days_ago" in found.sentence


def test_a_catalogue_without_times_is_not_asked_for_them(tmp_path: Path) -> None:
    plain = [{k: v for k, v in r.items() if k != "updated_at"} for r in rows()]
    assert check(tmp_path, taken(tmp_path, "now", plain), None, SnapshotLimits(max_age_days=1)).passed
