"""An encoder server of the tests' own, which answers from this process; the real ones are in tests/encoder_servers."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import circuit_breaker
from serving.contract.encoder import EncoderFolder
from serving.contract.runtimes import ONNXRUNTIME, Session
from serving.versions import encoder_server
from serving.versions.encoder_server import model_name


class Pretended:
    """What `connect` gives: models by name, as (the fingerprint that they state, their session)."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[str, Session]] = {}
        self.away = False
        self.pictures: list[int] = []

    def hold(self, folder: Path, graph: Path | None = None) -> None:
        """The photo encoder of a version, or another graph in its name."""
        manifest = EncoderFolder(folder).manifest
        variant = manifest.variant(manifest.query)
        session = ONNXRUNTIME.open(graph or folder / variant.file.path, "fp32", 1)
        self.models[model_name(variant.fingerprint)] = variant.fingerprint, session

    def fingerprint(self, model: str) -> str:
        self._reach()
        return self.models[model][0]

    def encode(self, model: str, pixels: np.ndarray) -> np.ndarray:
        self._reach()
        self.pictures.append(len(pixels))
        return self.models[model][1](pixels)

    def _reach(self) -> None:
        if self.away:
            raise ConnectionError("connection refused")


def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """A server called "pretended", which is asked again at once after an outage."""
    client: Any = Pretended()
    client.connect = lambda address, timeout_s: client
    monkeypatch.setitem(sys.modules, "pretended", client)
    monkeypatch.setitem(encoder_server.MODULES, "pretended", "pretended")
    monkeypatch.setattr(circuit_breaker, "PAUSE_S", 0.0)
    return client
