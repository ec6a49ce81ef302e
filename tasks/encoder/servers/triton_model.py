"""Triton's Python backend around ONNX Runtime: `vitrine encoder repository` copies this file into a model repository.

It runs in the server, with numpy and onnxruntime and nothing of ours. What is no picture never comes here: Triton holds each request
against config.pbtxt before it makes a batch, and refuses it alone.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        settings = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.input_name, self.output_name = config["input"][0]["name"], config["output"][0]["name"]
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = int(settings["threads"]), 1
        provider = "CUDAExecutionProvider" if args["model_instance_kind"] == "GPU" else "CPUExecutionProvider"
        if provider not in ort.get_available_providers():
            raise pb_utils.TritonModelException(f"this ONNX Runtime has no {provider}")
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = ort.InferenceSession(
            str(path), options, [provider], disabled_optimizers=settings["disabled_optimizers"].split(",")
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """All requests of a batch in one run; each gets its own vectors."""
        pixels = [pb_utils.get_input_tensor_by_name(r, self.input_name).as_numpy() for r in requests]
        vectors = self.session.run([self.output_name], {self.input_name: np.concatenate(pixels)})[0]
        ends = np.cumsum([len(p) for p in pixels])
        parts = [np.ascontiguousarray(part) for part in np.split(vectors, ends[:-1])]
        return [pb_utils.InferenceResponse([pb_utils.Tensor(self.output_name, part)]) for part in parts]
