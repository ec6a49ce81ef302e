"""One contract for every encoder server, over the real one: golden outputs, fingerprints, equal vectors, an outage and its end."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving.contract.encoder import EncoderFolder
from serving.versions.encoder_server import EncoderServer, EncoderUnavailable, model_name
from tests.encoder_servers.servers import ModelServer, TorchServe, TritonServer
from tests.running import until
from tests.serving.replica.conftest import open_app
from tests.serving.replica.storefront import Storefront, make_storefront

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SEEDS = (0, 1, 2, 3)
GOOD, OTHER_FINGERPRINT, OTHER_GRAPH, ABSENT = SEEDS
"""What the server holds of the encoder of each seed; index version n has the encoder of seed n - 1."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Storefront:
    return make_storefront(tmp_path_factory.mktemp("storefront"), versions=SEEDS, words=True)


@pytest.fixture
def store(front: Storefront, tmp_path: Path) -> Storefront:
    return front.copy(tmp_path / "release")


def encoder(store: Storefront, seed: int) -> EncoderFolder:
    """The encoder version that a seed made."""
    return EncoderFolder(store.release / "encoders" / store.manifest(str(seed + 1))["encoder"]["manifest"]["sha256"])


@pytest.fixture(scope="module", params=["triton-grpc", "triton-http", "torchserve"])
def server(request: pytest.FixtureRequest, front: Storefront, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    name, _, scheme = request.param.partition("-")
    folder = tmp_path_factory.mktemp(name)
    started: ModelServer = TritonServer(folder, scheme) if scheme else TorchServe(folder)
    started.write(encoder(front, GOOD))
    started.write(encoder(front, OTHER_FINGERPRINT), stated="ab" * 32)
    good = encoder(front, GOOD)
    started.write(encoder(front, OTHER_GRAPH), graph=good.verified_graph(good.manifest.query))
    try:
        started.start()
        yield started
    finally:
        started.kill()


def replica(store: Storefront, server: ModelServer) -> FastAPI:
    return open_app(store, encoder_server=server.name, encoder_address=server.address, encoder_timeout_s=5.0)


def remote(server: ModelServer, address: str = "") -> EncoderServer:
    return EncoderServer(server.name, address or server.address, 5.0)


def found(client: TestClient, photo: bytes) -> list[str]:
    """The products that a photo finds."""
    answer = client.post("/v1/search", files={"image": ("p.jpg", photo)})
    assert answer.status_code == 200, answer.text
    return [r["product_id"] for r in answer.json()["results"]]


def test_a_replica_answers_as_one_that_encodes_by_itself(store: Storefront, server: ModelServer) -> None:
    with TestClient(open_app(store)) as own, TestClient(replica(store, server)) as asking:
        assert asking.get("/readyz").status_code == 200
        for photo in list(store.photos.values())[:12]:
            assert found(own, photo) == found(asking, photo)
        assert asking.post("/v1/search", json={"text": "red mug"}).status_code == 200, "words are encoded by the replica"


def test_pictures_of_many_callers_keep_their_vectors(store: Storefront, server: ModelServer) -> None:
    folder = encoder(store, GOOD)
    here, there = folder.open("student.fp32"), folder.open("student.fp32", runtime=remote(server))
    pictures = np.random.default_rng(0).integers(0, 256, (200, 1, 32, 32, 3), dtype=np.uint8)
    with ThreadPoolExecutor(16) as pool:
        vectors = list(pool.map(there.encode, pictures))
    assert max(np.abs(v - here.encode(p)).max() for v, p in zip(vectors, pictures, strict=True)) < 1e-5


def test_a_bad_picture_fails_alone_among_those_of_other_callers(store: Storefront, server: ModelServer) -> None:
    """The server makes batches of what it is asked at a time; a refusal is no outage, which callers would try again."""
    folder = encoder(store, GOOD)
    here, client = folder.open("student.fp32"), remote(server).client
    model = model_name(here.fingerprint)
    client.fingerprint(model)
    pictures = np.random.default_rng(0).integers(0, 256, (100, 1, 32, 32, 3), dtype=np.uint8)

    def ask(place: int) -> bool:
        if place % 5:
            return bool(np.abs(client.encode(model, pictures[place]) - here.encode(pictures[place])).max() < 1e-5)
        with pytest.raises(RuntimeError):
            client.encode(model, pictures[place][:, :31])
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(len(pictures))))


@pytest.mark.parametrize(
    ("seed", "sentence"),
    [
        (OTHER_FINGERPRINT, "states the encoder with fingerprint abababababab…"),
        (OTHER_GRAPH, "student.fp32: golden outputs are not reproduced by"),
        (ABSENT, "holds no model vitrine_"),
    ],
    ids=["another fingerprint", "another graph", "absent"],
)
def test_a_version_whose_encoder_the_server_lacks_does_not_go_live(
    store: Storefront, server: ModelServer, seed: int, sentence: str
) -> None:
    app = replica(store, server)
    version = str(seed + 1)
    store.point(green=version, live=version)
    slots = app.state.replica.slots
    slots.refresh()
    green = slots.describe()["slots"]["green"]
    assert green["state"] == "failed"
    assert sentence in green["reason"]
    assert slots.live.version == "1"


def test_a_killed_server_is_a_503_until_it_is_back(store: Storefront, server: ModelServer) -> None:
    photos = list(store.photos.values())
    with TestClient(replica(store, server)) as client:
        found(client, photos[0])
        server.kill()
        for photo in photos[1:6]:
            answer = client.post("/v1/search", files={"image": ("p.jpg", photo)})
            assert (answer.status_code, answer.json()["reason"], answer.headers["Retry-After"]) == (503, "encoder_away", "5")
            assert answer.json()["detail"].startswith(f"{server.name} does not answer")
        assert client.post("/v1/search", json={"product_id": store.ids[0]}).status_code == 200
        assert client.post("/v1/search", json={"text": "red mug"}).status_code == 200
        server.start()
        until(lambda: client.post("/v1/search", files={"image": ("p.jpg", photos[1])}).status_code == 200, limit_s=60)


@pytest.mark.parametrize("address", ["", "triton:8001", "tcp://host:1", "grpc://"])
def test_what_is_no_address_of_triton_stops_the_start_with_one_sentence(address: str) -> None:
    with pytest.raises(ValueError, match=r"VITRINE_ENCODER_ADDRESS='.*': Triton's is like grpc://host:8001 or http://host:8000"):
        EncoderServer("triton", address, 1.0)


def test_a_path_before_tritons_own_is_kept() -> None:
    assert EncoderServer("triton", "http://host:8000/models/", 1.0).client.address == "host:8000/models"  # type: ignore[attr-defined]


def test_a_server_that_is_not_there_fails_the_version_and_not_the_replica(store: Storefront, server: ModelServer) -> None:
    address = server.address.rpartition(":")[0] + ":9"
    app = open_app(store, encoder_server=server.name, encoder_address=address, encoder_timeout_s=1.0)
    slot = app.state.replica.slots.describe()["slots"]["blue"]
    assert slot["state"] == "failed"
    assert slot["reason"].startswith(f"{server.name} does not answer")
    with pytest.raises(EncoderUnavailable):
        encoder(store, GOOD).open("student.fp32", runtime=remote(server, address))
