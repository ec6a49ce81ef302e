"""Client of the Triton Inference Server, over HTTP or gRPC (tritonclient, extras triton and triton-grpc)."""

import threading
from importlib import import_module
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from serving.contract.addresses import error_line
from serving.versions.encoder_server import FINGERPRINT, split_address

RECONNECT_MS = 1000
"""Longest pause between two attempts of gRPC to connect again; its own are up to two minutes."""
MISSING = ("StatusCode.NOT_FOUND", "404")
AWAY = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "502", "503", "504")
"""Statuses of InferenceServerException by gRPC and by HTTP."""


class TritonClient:
    """A client a thread: that of HTTP belongs to the thread that made it. Connections are kept; those of gRPC are shared by all."""

    def __init__(self, scheme: str, address: str, timeout_s: float) -> None:
        self.grpc, self.tls = scheme.startswith("grpc"), scheme.endswith("s")
        self.address, self.timeout_s = address, timeout_s
        self.api = _api("grpc" if self.grpc else "http")
        self.threads = threading.local()
        self.tensors: dict[str, tuple[str, str]] = {}

    def fingerprint(self, model: str) -> str:
        config = self._call("get_model_config", model, **({"as_json": True} if self.grpc else {}))
        config = config.get("config", config)
        self.tensors[model] = config["input"][0]["name"], config["output"][0]["name"]
        return str(config.get("parameters", {}).get(FINGERPRINT, {}).get("string_value", ""))

    def encode(self, model: str, pixels: np.ndarray) -> np.ndarray:
        input_name, output_name = self.tensors[model]
        tensor = self.api.InferInput(input_name, list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(np.ascontiguousarray(pixels))
        answer = self._call("infer", model, [tensor], outputs=[self.api.InferRequestedOutput(output_name)])
        return np.array(answer.as_numpy(output_name))

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Raises LookupError where there is no such model, OSError where the server is away, RuntimeError where it refuses."""
        if self.grpc:
            options["client_timeout"] = self.timeout_s
        try:
            return getattr(self._client(), method)(*arguments, **options)
        except InferenceServerException as error:
            status, message = str(error.status()), str(error.message())
            if status in MISSING:
                raise LookupError(message) from None
            raise (ConnectionError if status in AWAY else RuntimeError)(message) from None

    def _client(self) -> Any:
        if not hasattr(self.threads, "client"):
            self.threads.client = self._connect()
        return self.threads.client

    def _connect(self) -> Any:
        if self.grpc:
            settings = [
                ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
                ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS // 10),
            ]
            return self.api.InferenceServerClient(self.address, ssl=self.tls, channel_args=settings)
        return self.api.InferenceServerClient(
            self.address, ssl=self.tls, connection_timeout=self.timeout_s, network_timeout=self.timeout_s
        )


def _api(protocol: str) -> Any:
    """tritonclient's module for a protocol. Raises ValueError where it is not installed."""
    try:
        return import_module(f"tritonclient.{protocol}")
    except RuntimeError as error:  # its own, where a part of it is missing
        extra = "triton-grpc" if protocol == "grpc" else "triton"
        raise ValueError(f"VITRINE_ENCODER_ADDRESS is {protocol}://: install vitrine[{extra}] ({error_line(error)})") from None


def connect(address: str, timeout_s: float) -> TritonClient:
    """A client of the server at `address`, each of whose calls takes at most `timeout_s`. Raises ValueError where it is no address."""
    parts = split_address(address, ("grpc", "grpcs", "http", "https"), "Triton's is like grpc://host:8001 or http://host:8000")
    if parts.scheme.startswith("grpc"):
        return TritonClient(parts.scheme, parts.netloc, timeout_s)
    return TritonClient(parts.scheme, parts.netloc + parts.path.rstrip("/"), timeout_s)
