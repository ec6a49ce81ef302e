"""Several pictures a product, over HTTP: which one matched, and each of them to be seen."""

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import ServingSettings
from tasks.catalog.snapshot import take_snapshot
from tests.catalogs import picture, read_table, small_catalog, write_table
from tests.releases import add_version, make_release, set_aliases
from tests.running import gateway_over_shards

FURTHER = {"p001": ["images/1b.jpg", "images/1c.jpg"], "p002": ["images/2b.jpg", "images/2c.jpg"]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve products, two of them with three pictures, of which one's main picture is gone."""
    home = tmp_path_factory.mktemp("home")
    shop = small_catalog(home / "shop")
    rows = read_table(shop / "products.csv")
    write_table(shop / "products.csv", [row | {"images": json.dumps(FURTHER.get(row["product_id"], []))} for row in rows])
    for number, uris in enumerate(FURTHER.values()):
        for m, uri in enumerate(uris):
            picture(shop / uri, 100 + 10 * number + m)
    (shop / "images/2.jpg").unlink()
    add_version(home, take_snapshot(str(shop), str(home / "snapshots"), "one"), "1")
    set_aliases(home, live="1", blue="1")
    return home


@pytest.fixture(scope="module")
def client(shop: Path) -> TestClient:
    app = create_app(ServingSettings(release=str(shop / "release")))
    app.state.replica.slots.refresh()
    return TestClient(app)


def found(client: TestClient, path: Path) -> dict[str, str]:
    answer = client.post("/v1/search", files={"image": path.read_bytes()}, data={"k": "12"}).json()
    ids = [r["product_id"] for r in answer["results"]]
    assert len(set(ids)) == len(ids) == 12, "products, each once"
    assert all("matched_image" in r for r in answer["results"])
    return answer["results"][0]


@pytest.mark.parametrize(
    ("uri", "product", "address"),
    [
        ("images/1.jpg", "p001", "/v1/images/p001"), ("images/1b.jpg", "p001", "/v1/images/p001?picture=1"),
        ("images/1c.jpg", "p001", "/v1/images/p001?picture=2"), ("images/2b.jpg", "p002", "/v1/images/p002?picture=1"),
        ("images/2c.jpg", "p002", "/v1/images/p002?picture=2"), ("images/3.jpg", "p003", "/v1/images/p003"),
    ],
)  # fmt: skip
def test_an_answer_says_which_picture_matched_and_shows_it(
    uri: str, product: str, address: str, client: TestClient, shop: Path
) -> None:
    best = found(client, shop / "shop" / uri)
    assert (best["product_id"], best["image_url"], best["matched_image"]) == (product, f"/v1/images/{product}", address)
    assert client.get(best["matched_image"]).content == (shop / "shop" / uri).read_bytes()
    again = client.post("/v1/search", files={"image": (shop / "shop" / uri).read_bytes()}, data={"k": "11"}).json()
    assert "candidates" in again["cached"] or again["results"][0]["matched_image"] == address
    assert again["results"][0]["matched_image"] == address, "remembered candidates say it too"


def test_a_product_without_its_main_picture_shows_its_first_usable_one(client: TestClient, shop: Path) -> None:
    assert client.get("/v1/images/p002").content == (shop / "shop/images/2b.jpg").read_bytes()
    assert client.get("/v1/images/p002?picture=1").content == (shop / "shop/images/2b.jpg").read_bytes()
    for wrong, status in (("p001?picture=3", 404), ("p003?picture=1", 404), ("p001?picture=-1", 422), ("p001?picture=x", 422)):
        assert client.get(f"/v1/images/{wrong}").status_code == status


def test_a_gateway_over_shards_says_the_same(client: TestClient, shop: Path) -> None:
    with gateway_over_shards(shop / "release") as gateway:
        for query in ({"product_id": "p001", "k": 12}, {"product_id": "p003", "k": 12, "filter": {"in_stock": True}}):
            one, other = (c.post("/v1/search", json=query).json()["results"] for c in (client, gateway))
            assert [r["product_id"] for r in one] == [r["product_id"] for r in other]
            assert [r["matched_image"] for r in one] == [r["matched_image"] for r in other]
        best = found(gateway, shop / "shop/images/2c.jpg")
        assert best["matched_image"] == "/v1/images/p002?picture=2"
        assert gateway.get(best["matched_image"]).content == (shop / "shop/images/2c.jpg").read_bytes()


def test_addresses_of_pictures_are_no_column_to_filter(client: TestClient) -> None:
    answer = client.post("/v1/search", json={"product_id": "p001", "filter": {"images": "images/1b.jpg"}})
    assert answer.status_code == 422
    assert "has no column 'images' to ask" in answer.json()["detail"]


def test_similar_products_leave_out_the_product_with_all_its_pictures(client: TestClient) -> None:
    answer = client.get("/v1/products/p001/similar?k=12").json()
    assert "p001" not in [r["product_id"] for r in answer["results"]]
    assert len(answer["results"]) == 11


def test_single_picture_versions_say_nothing_of_it(tmp_path: Path) -> None:
    make_release(tmp_path)
    app = create_app(ServingSettings(release=str(tmp_path / "release")))
    app.state.replica.slots.refresh()
    answer = TestClient(app).post("/v1/search", json={"product_id": "p001"}).json()
    assert not any("matched_image" in r for r in answer["results"])
