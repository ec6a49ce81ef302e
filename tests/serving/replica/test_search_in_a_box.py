"""A box in a photo over HTTP: what lies in it is searched for, and nothing of another box is remembered for it."""

import base64
import io
import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.serving.replica.conftest import open_app
from tests.serving.replica.storefront import Storefront

BOX = {"x": 0.25, "y": 0.125, "width": 0.5, "height": 0.5}
THING = 13


@pytest.fixture(scope="module")
def client(front: Storefront) -> Iterator[TestClient]:
    with TestClient(open_app(front, sample_rate=1.0, sample_photos=True)) as client:
        yield client


def street(front: Storefront, turned: bool = False) -> bytes:
    """A photo of 800 x 800 pixels with one product's picture in the place of BOX; `turned`: stored on its side, as by a phone."""
    thing = Image.open(io.BytesIO((front.catalog / "images" / f"{THING}.jpg").read_bytes())).resize((400, 400))
    scene = Image.effect_noise((800, 800), 90).convert("RGB")
    scene.paste((200, 30, 30), (600, 500, 800, 800))
    scene.paste(thing, (200, 100))
    exif = Image.Exif()
    if turned:
        scene, exif[0x112] = scene.transpose(Image.Transpose.ROTATE_90), 6
    stream = io.BytesIO()
    scene.save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


def search(client: TestClient, photo: bytes, **fields: object) -> dict:
    """The answer to a multipart search."""
    data = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in fields.items()}
    answer = client.post("/v1/search", files={"image": photo}, data=data)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("turned", [False, True])
def test_what_lies_in_the_box_of_the_upright_photo_is_found(client: TestClient, front: Storefront, turned: bool) -> None:
    photo = street(front, turned)
    inside = search(client, photo, box=BOX)
    assert inside["results"][0]["product_id"] == front.ids[THING]
    assert inside["results"][0]["similarity"] > search(client, photo)["results"][0]["similarity"]
    as_json = client.post("/v1/search", json={"image": base64.b64encode(photo).decode(), "box": BOX}).json()
    assert as_json["results"] == inside["results"]
    batch = client.post("/v1/search/batch", json={"searches": [{"image": base64.b64encode(photo).decode(), "box": BOX}]}).json()
    assert batch["answers"][0]["results"] == inside["results"]


def test_the_box_of_the_whole_photo_is_no_box(front: Storefront) -> None:
    with TestClient(open_app(front)) as client:
        plain = search(client, front.photos[front.ids[3]])
        boxed = search(client, front.photos[front.ids[3]], box={"x": 0, "y": 0, "width": 1, "height": 1})
    assert boxed["cached"] == ["response"], "the very same question"
    assert boxed["results"] == plain["results"]


def test_every_box_has_answers_and_addresses_of_its_own(front: Storefront) -> None:
    photo = street(front)
    other = BOX | {"x": 0.0}
    with TestClient(open_app(front)) as client:
        first = client.post("/v1/search", files={"image": photo}, data={"box": json.dumps(BOX)})
        assert search(client, photo)["cached"] == []
        assert search(client, photo, box=other)["cached"] == []
        again = search(client, photo, box=BOX)
        assert (again["cached"], again["results"]) == (["response"], first.json()["results"])
        assert search(client, photo, box=BOX, k="3")["cached"] == ["embedding", "candidates"]
        address = first.headers["content-location"]
        assert "box=" in address
        assert client.get(address).json()["results"] == first.json()["results"]
        tags = {client.get(a).headers["etag"] for a in (address, address.partition("&box")[0])}
        assert len(tags) == 2


def test_a_sample_says_which_box_it_is_of(client: TestClient, front: Storefront, admin: dict[str, str]) -> None:
    photo = street(front)
    search(client, photo, box=BOX, k="7")
    search(client, photo, k="7")
    newest = client.get("/v1/samples", params={"limit": 2}, headers=admin).json()["samples"]
    assert [s["box"] for s in newest] == [None, BOX]
    assert newest[0]["vector"] != newest[1]["vector"]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            {"box": BOX | {"width": 0.9}},
            "box: the box reaches over the photo's right edge: x + width is 1.15, at most 1 is in the photo",
        ),
        (
            {"box": BOX | {"y": 0.7}},
            "box: the box reaches over the photo's lower edge: y + height is 1.2, at most 1 is in the photo",
        ),
        ({"box": BOX | {"height": 0}}, "box.height: Input should be greater than 0"),
        ({"box": {"x": 0}}, "box.y: Field required"),
        ({"box": BOX | {"depth": 1}}, "box.depth: Extra inputs are not permitted"),
    ],
)
def test_a_box_that_means_nothing_is_one_sentence(client: TestClient, front: Storefront, request_: dict, sentence: str) -> None:
    photo = front.photos[front.ids[0]]
    by_form = client.post("/v1/search", files={"image": photo}, data={"box": json.dumps(request_["box"])})
    by_json = client.post("/v1/search", json={"image": base64.b64encode(photo).decode()} | request_)
    for answer in (by_form, by_json):
        assert (answer.status_code, answer.json()["detail"]) == (422, sentence)


def test_a_box_without_a_photo_is_refused(client: TestClient, front: Storefront) -> None:
    sentence = "box: it is a part of a photo, and there is no photo in this request"
    posted = client.post("/v1/search", json={"product_id": front.ids[0], "box": BOX})
    got = client.get("/v1/search", params={"product_id": front.ids[0], "box": json.dumps(BOX)})
    assert [(a.status_code, a.json()["detail"]) for a in (posted, got)] == [(422, sentence)] * 2
    not_json = client.post("/v1/search", files={"image": front.photos[front.ids[0]]}, data={"box": "0,0,1,1"})
    assert (not_json.status_code, not_json.json()["detail"]) == (422, "the field box is not JSON")
