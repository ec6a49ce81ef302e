"""Products without a picture, over HTTP: words find them, photos do not, and nobody is sent to a picture that is not there."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import ServingSettings
from tasks.catalog.schema import RowLimits
from tasks.catalog.snapshot import take_snapshot
from tasks.catalog.sources.source import SourceOptions
from tests.catalogs import read_table, small_catalog, write_table
from tests.releases import add_version, set_aliases
from tests.running import gateway_over_shards

TITLES = {"p001": "red mug", "p002": "blue lamp"}


def titled_release(home: Path) -> Path:
    """A release of twelve products, two of them without a picture, below `home`."""
    shop = small_catalog(home / "shop")
    bare = {product_id: {"title": title, "image": ""} for product_id, title in TITLES.items()}
    rows = read_table(shop / "products.csv")
    write_table(shop / "products.csv", [row | bare.get(row["product_id"], {}) for row in rows])
    options = SourceOptions(limits=RowLimits(text_only=True))
    taken = take_snapshot(str(shop), str(home / "snapshots"), "one", options)
    assert (taken.titles, taken.photos, taken.orphan_photos) == (2, 30, 6), "no photo can find them"
    assert taken.orphans == "labelled photos left out because their product is not in the catalogue or has no picture: 6"
    add_version(home, taken, "1", words=True)
    set_aliases(home, live="1", blue="1")
    return home


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return titled_release(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def client(shop: Path) -> TestClient:
    app = create_app(ServingSettings(release=str(shop / "release")))
    app.state.replica.slots.refresh()
    return TestClient(app)


def results(client: TestClient, **query: object) -> list[dict]:
    answer = client.post("/v1/search", json=query | {"k": 12})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def test_words_find_both_and_show_no_picture_where_there_is_none(client: TestClient) -> None:
    found = results(client, text="red mug")
    assert len(found) == 12
    assert (found[0]["product_id"], found[0]["image_url"], found[0]["matched_image"]) == ("p001", None, None)
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)
    others = [r for r in found if r["product_id"] not in TITLES]
    assert all(r["matched_image"] == r["image_url"] == f"/v1/images/{r['product_id']}" for r in others)
    again = results(client, text="red mug", explain=True)
    assert [r["matched_image"] for r in again] == [r["matched_image"] for r in found], "remembered candidates say it too"


def test_photos_vectors_and_products_find_pictures_alone(client: TestClient, shop: Path) -> None:
    photo = (shop / "shop/images/3.jpg").read_bytes()
    by_photo = client.post("/v1/search", files={"image": photo}, data={"k": "12"}).json()["results"]
    vector = [1.0] + [0.0] * 15
    for found in (by_photo, results(client, product_id="p003"), results(client, vector=vector)):
        assert found
        assert not {r["product_id"] for r in found} & set(TITLES)
    mixed = client.post("/v1/search", files={"image": photo}, data={"k": "12", "text": "red mug"}).json()["results"]
    assert set(TITLES) < {r["product_id"] for r in mixed}, "there are words in it"


def test_the_vector_of_words_given_as_a_vector_is_not_answered_from_the_words_cache(client: TestClient, shop: Path) -> None:
    release = client.app.state.replica.slots.releases()[0]  # type: ignore[attr-defined]
    assert release.text_encoder is not None
    vector = release.text_encoder.encode("blue lamp")
    assert results(client, text="blue lamp")[0]["product_id"] == "p002"
    assert "p002" not in [r["product_id"] for r in results(client, vector=[float(v) for v in vector])]


def test_what_is_like_a_product_without_a_picture_is_what_its_title_finds(client: TestClient) -> None:
    answer = client.get("/v1/products/p001/similar?k=12").json()
    ids = [r["product_id"] for r in answer["results"]]
    assert len(ids) == 11
    assert "p001" not in ids
    assert "p002" in ids
    missing = client.get("/v1/images/p001")
    assert missing.status_code == 404
    assert missing.json()["detail"] == "the picture of product 'p001' cannot be shown from here"


def test_a_gateway_over_shards_says_the_same(client: TestClient, shop: Path) -> None:
    with gateway_over_shards(shop / "release") as gateway:
        for query in ({"text": "blue lamp"}, {"product_id": "p001"}, {"product_id": "p004"}):
            one, other = (results(c, **query) for c in (client, gateway))
            assert [(r["product_id"], r["matched_image"]) for r in one] == [(r["product_id"], r["matched_image"]) for r in other]
