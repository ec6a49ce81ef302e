"""What changed between two versions, over a real registry; and how the command line tells it."""

import pytest
from typer.testing import CliRunner

from tasks.cli import app
from tasks.registry import Registry
from tasks.release.diff import difference
from tests.catalogs import picture, read_table, write_table
from tests.registered import Shop, good_gates

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, str, str]:
    """A shop, and two of its versions: p000 left (its photos stayed), p900 came, p003 became cheaper and p004 lost its brand."""
    home = tmp_path_factory.mktemp("differing")
    shop = Shop(home, Registry(mlflow_uri, home / "cache"))
    first = shop.version(good_gates(0.92))
    rows = [r for r in read_table(shop.catalog / "products.csv") if r["product_id"] != "p000"]
    for row in rows:
        if row["product_id"] == "p003":
            row["price"] = "1"
        if row["product_id"] == "p004":
            row["brand"] = ""
    picture(shop.catalog / "images/900.jpg", 900)
    write_table(shop.catalog / "products.csv", [*rows, rows[0] | {"product_id": "p900", "image": "images/900.jpg"}])
    return shop, first, shop.version(good_gates(0.95))


def test_products_files_gates_and_answers_are_compared(two: tuple[Shop, str, str]) -> None:
    shop, first, second = two
    found = difference(shop.registry, first, second)
    made = found.products
    assert (made.before, made.after, made.added, made.removed, made.changed) == (12, 12, 1, 1, 2)
    assert (made.added_ids, made.removed_ids) == (("p900",), ("p000",))
    assert set(made.changed_ids) == {"p003", "p004"}
    recall = next(f for f in found.figures if f.name == "photo_recall")
    assert (recall.before, recall.after) == (0.92, 0.95)
    assert found.new_bytes > 0
    assert len(found.answers) == 11
    assert all(a.before == 1 and a.after == 1 for a in found.answers)
    assert all(0.8 < a.kept < 1.0 for a in found.answers)


def test_a_version_does_not_differ_from_itself(two: tuple[Shop, str, str]) -> None:
    shop, first, _ = two
    found = difference(shop.registry, first, first, photos=0)
    made = found.products
    assert (made.added, made.removed, made.changed, found.new_bytes) == (0, 0, 0, 0)
    assert found.files_kept == found.files_after


def test_the_command_line_tells_it(two: tuple[Shop, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    shop, first, second = two
    for name, value in {"HOME": str(shop.home), "MLFLOW_URI": shop.registry.uri, "SERVING_URLS": ""}.items():
        monkeypatch.setenv(f"VITRINE_{name}", value)
    monkeypatch.setenv("COLUMNS", "200")
    run = CliRunner().invoke
    told = run(app, ["release", "diff", first, second]).output
    assert "12 -> 12; 1 added, 1 removed, 2 changed" in told
    assert "weights and rules: {}, the same" in told
    assert "added: p900" in told
    assert "photo_recall" in told
    assert "11 photos" in told
    listed = run(app, ["release", "list"]).output
    assert all(version in listed for version in (first, second))
    shown = run(app, ["release", "show", first]).output
    assert "exact_recall" in shown
    assert "snapshot" in shown
    assert run(app, ["release", "show"]).output.startswith("live: ")
    refused = run(app, ["release", "show", "999"])
    assert "no version '999'" in str(refused.exception)
