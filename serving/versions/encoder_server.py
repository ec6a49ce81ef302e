"""Encoder servers: one more runtime, whose graphs another process holds under names that follow from their fingerprints.

Decoding, cropping and resizing stay in the replica; what crosses the wire is the tensor that the graph takes. A server is used as every
runtime is: only after it reproduced the golden outputs of the version (docs/decisions/0102).
"""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Protocol
from urllib.parse import SplitResult, urlsplit

import numpy as np

from serving.circuit_breaker import CircuitBreaker, RemoteUnavailable
from serving.contract.addresses import error_line, is_url, scheme, shown_setting, without_userinfo
from serving.contract.files import ContractError
from serving.contract.runtimes import Format, Session

MODULES = {"triton": "serving.versions.triton", "torchserve": "serving.versions.torchserve"}
"""Module of each server; its function `connect(address, timeout_s)` gives an `EncoderClient`."""
FINGERPRINT = "fingerprint"
"""Under which name a model states the fingerprint of its encoder (tasks/encoder/servers)."""
LENGTH_TOLERANCE = 1e-2
"""Largest difference of a vector's length from 1 that is still an answer."""


class EncoderUnavailable(RemoteUnavailable):
    """An encoder server does not answer."""

    reason = "encoder_away"


class EncoderClient(Protocol):
    """Calls of one server, from any thread. Raises OSError where another attempt may help, other errors where the server refuses."""

    def fingerprint(self, model: str) -> str:
        """The fingerprint that the server states for this model; "" where it states none. Raises LookupError where it has no such."""
        ...

    def encode(self, model: str, pixels: np.ndarray) -> np.ndarray:
        """The vector (1, d) float32 of one picture (1, h, w, 3) uint8."""
        ...


class EncoderServer:
    """Runtime whose graphs an encoder server holds. Its sessions raise EncoderUnavailable while the server does not answer.

    A call carries one picture: batches are the server's to make, of what it is asked at a time.
    """

    format: ClassVar[Format] = "server"

    def __init__(self, name: str, address: str, timeout_s: float) -> None:
        """Raises ValueError in one sentence where this server is not known, its address is none, or its client is not installed."""
        if name not in MODULES:
            raise ValueError(
                f"VITRINE_ENCODER_SERVER={name!r}: there is no such encoder server; choose one of {', '.join(MODULES)}"
            )
        try:
            self.client: EncoderClient = import_module(MODULES[name]).connect(address, timeout_s)
        except ModuleNotFoundError as error:
            raise ValueError(f"VITRINE_ENCODER_SERVER={name} needs the package {error.name}: install vitrine[{name}]") from None
        self.name, self.breaker = name, CircuitBreaker(name, EncoderUnavailable, (OSError,))

    def open(self, path: Path, precision: str, threads: int, fingerprint: str = "") -> Session:
        """The session of the model that has this fingerprint.

        Raises ContractError where the server has no such model, or one that states another fingerprint; EncoderUnavailable.
        """
        model = model_name(fingerprint)
        stated = self.breaker(lambda: self._stated(model))
        if stated != fingerprint:
            what = f"the encoder with fingerprint {stated[:12]}…" if stated else "no fingerprint"
            raise ContractError(
                f"{self.name} states {what} for its model {model}, where {fingerprint[:12]}… is needed; load the right one"
            )
        return partial(self._encode, model)

    def _stated(self, model: str) -> str:
        try:
            return self.client.fingerprint(model)
        except LookupError as error:
            raise ContractError(
                f"{self.name} holds no model {model}, this version's encoder ({error_line(error)}); load what `vitrine "
                "encoder repository` writes of it"
            ) from None

    def _encode(self, model: str, batch: np.ndarray) -> np.ndarray:
        def one(pixels: np.ndarray) -> np.ndarray:
            vector = self.client.encode(model, pixels)
            if vector.dtype != np.float32 or vector.ndim != 2 or not abs(np.linalg.norm(vector) - 1) <= LENGTH_TOLERANCE:
                raise TypeError(f"what it gives is no unit vector but {vector.dtype} of shape {vector.shape}")
            return vector

        return np.concatenate([self.breaker(partial(one, batch[i : i + 1])) for i in range(len(batch))])


def split_address(address: str, schemes: tuple[str, ...], like: str) -> SplitResult:
    """The parts of VITRINE_ENCODER_ADDRESS. Raises ValueError, which says what one is `like`, where it is none, or names a user."""
    address = address.strip()
    shown = f"VITRINE_ENCODER_ADDRESS={shown_setting(address)!r}"
    if scheme(address) in schemes and without_userinfo(address) != address:  # clients' own sentences may show passwords
        raise ValueError(f"{shown}: no user is sent to encoder servers; leave it out")
    if scheme(address) not in schemes or not is_url(address):
        raise ValueError(f"{shown}: {like}")
    return urlsplit(address)


def model_name(fingerprint: str) -> str:
    """The name of a model in an encoder server: of every encoder another, so that one server holds those of both slots."""
    return f"vitrine_{fingerprint[:16]}"
