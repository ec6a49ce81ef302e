"""TorchServe's handler around ONNX Runtime: `vitrine encoder repository --server torchserve` puts this file into a model archive.

It runs in the server, with numpy and onnxruntime and nothing of ours. A request's body is one picture as .npy; the answer is its
vector as .npy. An empty body is answered with the encoder's fingerprint, one that is no such picture with status 400 and the reason.
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
        """All requests of a batch in one run; each gets its own vector, and what is no picture fails alone."""
        answers = [self.settings["fingerprint"].encode()] * len(data)
        pictures: dict[int, np.ndarray] = {}
        for place, row in enumerate(data):
            body = bytes(row.get("body") or row.get("data") or b"")
            try:
                if body:
                    pictures[place] = self._picture(body)
            except Exception as error:  # numpy has many for what is no array, and the rest of the batch is other callers'
                answers[place] = f"not a picture: {error}".encode()
                context.set_response_status(400, "not a picture", place)
        if pictures:
            vectors = self._run(np.concatenate(list(pictures.values())))
            for place, vector in zip(pictures, vectors, strict=True):
                answers[place] = _npy(vector[None])
        return answers

    def _picture(self, body: bytes) -> np.ndarray:
        """The one picture of a body, uint8 (1, h, w, 3) as the graph takes it."""
        picture: np.ndarray = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
        shape = (1, *self.session.get_inputs()[0].shape[1:])
        if picture.dtype != np.uint8 or picture.shape != shape:
            raise ValueError(f"{picture.dtype} of shape {picture.shape}, where uint8 of shape {shape} is taken")
        return picture

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        vectors: np.ndarray = self.session.run([self.settings["output"]], {self.settings["input"]: pixels})[0]
        return vectors


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()
