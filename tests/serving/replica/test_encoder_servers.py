"""A replica whose photos a server encodes: what it answers while that is away, and with which settings it does not start."""

import pytest
from fastapi.testclient import TestClient

from serving.versions import encoder_server
from tests.serving.replica.conftest import open_app
from tests.serving.replica.storefront import Storefront
from tests.serving.versions.pretended import pretend


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"encoder_server": "tensorflow"},
            "VITRINE_ENCODER_SERVER='tensorflow': there is no such encoder server; choose one of triton",
        ),
        (
            {"encoder_server": "missing"},
            r"VITRINE_ENCODER_SERVER=missing needs the package not_there: install vitrine\[missing\]",
        ),
    ],
)
def test_a_replica_does_not_start_with_a_server_that_cannot_be(
    store: Storefront, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], sentence: str
) -> None:
    monkeypatch.setitem(encoder_server.MODULES, "missing", "not_there")
    with pytest.raises(ValueError, match=sentence):
        open_app(store, **settings)


def test_while_its_server_is_away_a_replica_answers_what_needs_no_encoder_and_its_live_version_stays(
    store: Storefront, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pretend(monkeypatch)
    for folder in (store.release / "encoders").iterdir():
        server.hold(folder)
    app = open_app(store, encoder_server="pretended")
    product, photo = next(iter(store.photos.items()))
    other = {"image": ("q.jpg", list(store.photos.values())[1])}
    with TestClient(app) as client:
        before = client.post("/v1/search", files={"image": ("p.jpg", photo)}).json()
        assert product in [r["product_id"] for r in before["results"]]
        server.away = True
        answer = client.post("/v1/search", files=other)
        assert (answer.status_code, answer.json()["reason"], answer.headers["Retry-After"]) == (503, "encoder_away", "5")
        assert "pretended does not answer: connection refused" in answer.json()["detail"]
        assert client.post("/v1/search", json={"product_id": product}).status_code == 200
        store.point(green="2", live="2")
        app.state.replica.slots.refresh()
        state = client.get("/v1/version").json()
        assert state["live"]["version"] == "1"
        server.away = False
        assert client.post("/v1/search", files=other).status_code == 200
        app.state.replica.slots.slots["green"].failed_at = float("-inf")
        app.state.replica.slots.refresh()
        assert client.post("/v1/search", files=other).json()["version"]["index"] == "2"
