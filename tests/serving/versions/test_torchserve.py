"""TorchServe's client, against a server of the tests' own that is not TorchServe; the real one is in tests/encoder_servers."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from serving.versions.torchserve import connect


class NotTorchServe(BaseHTTPRequestHandler):
    """Answers by the model's name: the mean of a picture's colours, a fingerprint, or an error."""

    protocol_version = "HTTP/1.1"
    connections: set[tuple[str, int]] = set()

    def do_POST(self) -> None:
        self.connections.add(self.client_address)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status, _, model = self.path.removeprefix("/below/predictions/").rpartition("-")
        answer = b"a sentence of the server" if status else b"ab" * 32
        if body and not status:
            answer = b"garbage" if model == "garbage" else _npy(np.load(io.BytesIO(body)).mean(axis=(1, 2)).astype(np.float32))
        self.send_response(int(status or 200))
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None: ...


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), NotTorchServe)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/below/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_pictures_and_the_fingerprint_go_over_kept_connections(address: str) -> None:
    client = connect(address, 60.0)
    assert client.fingerprint("model") == "ab" * 32
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4, 3), dtype=np.uint8)
    NotTorchServe.connections.clear()
    with ThreadPoolExecutor(4) as pool:
        vectors = list(pool.map(lambda p: client.encode("model", p), pixels))
    np.testing.assert_allclose(np.concatenate(vectors), pixels.mean(axis=(2, 3))[:, 0], rtol=1e-6)
    assert len(NotTorchServe.connections) <= 4


@pytest.mark.parametrize(
    ("model", "error", "sentence"),
    [
        ("404-model", LookupError, "status 404: a sentence of the server"),
        ("503-model", ConnectionError, "status 503: a sentence of the server"),
        ("500-model", RuntimeError, "status 500: a sentence of the server"),
        ("garbage", RuntimeError, "what it answers is no array: b'garbage'"),
    ],
)
def test_what_the_server_refuses_is_told_apart(address: str, model: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        connect(address, 60.0).encode(model, np.zeros((1, 4, 4, 3), np.uint8))


def test_nobody_there_is_a_connection_error_and_a_wrong_address_a_value_error() -> None:
    with pytest.raises(ConnectionError, match="Failed to establish a new connection"):
        connect("http://127.0.0.1:9", 0.5).fingerprint("model")
    for wrong in ("", "grpc://host:7070", "http://", "ftp://shop:hidden@host"):
        with pytest.raises(ValueError, match=r"VITRINE_ENCODER_ADDRESS=.*: TorchServe's is like http://host:8080") as raised:
            connect(wrong, 1.0)
        assert "hidden" not in str(raised.value)
    with pytest.raises(ValueError, match="no user is sent to encoder servers") as raised:
        connect("http://shop:hidden@host:8080", 1.0)
    assert "hidden" not in str(raised.value)
