"""Client of TorchServe over HTTP, whose handler takes a picture as .npy (tasks/encoder/servers/torchserve_handler.py)."""

import io
from urllib.parse import urlsplit

import numpy as np
import urllib3

from serving.versions.encoder_server import split_address

CONNECTIONS = 64
"""Connections that are kept; more callers at a time open connections of their own."""
AWAY = (502, 503, 504)


class TorchServeClient:
    """Calls over kept connections, from any thread."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self.pool = urllib3.connection_from_url(address, maxsize=CONNECTIONS, timeout=urllib3.Timeout(timeout_s), retries=False)
        self.path = urlsplit(address).path.rstrip("/")

    def fingerprint(self, model: str) -> str:
        return self._predict(model, b"").decode(errors="replace")

    def encode(self, model: str, pixels: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        np.save(stream, pixels, allow_pickle=False)
        answer = self._predict(model, stream.getvalue())
        try:
            vector: np.ndarray = np.load(io.BytesIO(answer), allow_pickle=False)
        except (ValueError, EOFError):
            raise RuntimeError(f"what it answers is no array: {answer[:100]!r}") from None
        return vector

    def _predict(self, model: str, body: bytes) -> bytes:
        """Raises LookupError where there is no such model, OSError where the server is away, RuntimeError where it refuses."""
        try:
            answer = self.pool.request(
                "POST", f"{self.path}/predictions/{model}", body=body, headers={"Content-Type": "application/octet-stream"}
            )
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(str(error.args[-1])) from None  # before it may stand the repr of a connection
        if answer.status == 200:
            return answer.data
        why = f"status {answer.status}: {answer.data[:200].decode(errors='replace')}"
        if answer.status == 404:
            raise LookupError(why)
        raise (ConnectionError if answer.status in AWAY else RuntimeError)(why)


def connect(address: str, timeout_s: float) -> TorchServeClient:
    """A client of the server at `address`, each of whose calls takes at most `timeout_s`. Raises ValueError where it is no address."""
    parts = split_address(address, ("http", "https"), "TorchServe's is like http://host:8080")
    return TorchServeClient(parts.geturl(), timeout_s)
