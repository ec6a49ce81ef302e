"""TorchServe's handler around ONNX Runtime: `vitrine encoder repository --server torchserve` puts this file into a model archive.

It runs in the server, with numpy and onnxruntime and nothing of ours. A request's body is one picture as .npy; the answer is its
vector as .npy. An empty body is answered with the encoder's fingerprint.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


class EncoderHandler:
    """One worker of the model."""

    def initialize(self, context: Any) -> None:
        folder = Path(context.system_properties["model_dir"])
        self.settings = json.loads((folder / "settings.json").read_text())
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.settings["threads"], 1
        provider = "CUDAExecutionProvider" if self.settings["gpu"] else "CPUExecutionProvider"
        if provider not in ort.get_available_providers():
            raise RuntimeError(f"this ONNX Runtime has no {provider}")
        self.session = ort.InferenceSession(
            str(folder / self.settings["graph"]), options, [provider], disabled_optimizers=self.settings["disabled_optimizers"]
        )

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """All requests of a batch in one run; each gets its own vector."""
        bodies = [bytes(row.get("body") or row.get("data") or b"") for row in data]
        pictures = [np.load(io.BytesIO(body), allow_pickle=False) for body in bodies if body]
        vectors = iter(self._run(np.concatenate(pictures)) if pictures else ())
        return [_npy(next(vectors)[None]) if body else self.settings["fingerprint"].encode() for body in bodies]

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        vectors: np.ndarray = self.session.run([self.settings["output"]], {self.settings["input"]: pixels})[0]
        return vectors


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()
