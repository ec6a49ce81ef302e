"""Inference runtimes for encoder graphs. A runtime opens a file as a session: a function from a batch to unit vectors.

`EncoderFolder.open` checks every runtime against the same golden outputs. Triton and TorchServe are runtimes, too
(serving/versions/encoder_server.py).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from serving.contract.addresses import error_line
from serving.contract.files import ContractError

Session = Callable[[np.ndarray], np.ndarray]
"""Pixels (n, size, size, 3) uint8, or tokens (n, context) int64, to unit vectors (n, dim) float32. Threads may share one."""
Format = Literal["onnx", "torchscript", "server"]
"""What a runtime opens: a file of this process, or a model that a server holds already."""
DISABLED_OPTIMIZERS = ["FuseFp16InitializerToFp32NodeTransformer"]
"""Optimisers of ORT_ENABLE_ALL that are disabled in every session, at export as in serving.

It moves float16 weights into nodes that a CPU computes in float32. In 1.32 the next pass of NchwcTransformer over such a Conv, the
one that cuts a ViT's patches, is a segmentation fault (docs/decisions/0019). A graph without float16 weights loses nothing.
"""


class Runtime(Protocol):
    """Opens models of one format."""

    @property
    def name(self) -> str: ...

    @property
    def format(self) -> Format: ...

    def open(self, path: Path, precision: str, threads: int, fingerprint: str = "") -> Session:
        """The graph in `path`, whose variant is `precision` (fp32, fp16 or int8). Raises ContractError in one sentence.

        `fingerprint` is the variant's, by which a server knows it.
        """
        ...


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime with one execution provider; raises rather than falling back from GPU to CPU."""

    name: str
    provider: str
    format: ClassVar[Format] = "onnx"

    def open(self, path: Path, precision: str, threads: int, fingerprint: str = "") -> Session:
        import onnxruntime as ort

        ort.disable_telemetry_events()
        if self.provider not in ort.get_available_providers():
            raise ContractError(
                f"{self.name}: this ONNX Runtime has no {self.provider}; install the extra gpu, or choose the runtime onnxruntime"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            providers = [(self.provider, self._settings(precision))]
            session = ort.InferenceSession(str(path), options, providers, disabled_optimizers=DISABLED_OPTIMIZERS)
        except Exception as error:  # ONNX Runtime raises its own unrelated classes for every bad file
            raise ContractError(f"{path.name}: ONNX Runtime cannot load it: {error_line(error)}") from None
        if session.get_providers()[0] != self.provider:
            raise ContractError(f"{self.name}: {self.provider} did not start (no GPU, or its libraries are missing)")
        taken, given = session.get_inputs()[0].name, [session.get_outputs()[0].name]
        # A copy: what ONNX Runtime gives is a piece of the session's arena, and one remembered vector would keep all of that alive.
        return lambda batch: np.array(session.run(given, {taken: batch})[0])

    def _settings(self, precision: str) -> dict[str, str]:
        if self.provider == "CUDAExecutionProvider":
            return {"use_tf32": "0"}  # TF32 keeps 10 bits of a mantissa: fp32 would not be fp32
        return {"trt_fp16_enable": str(precision == "fp16")} if self.provider == "TensorrtExecutionProvider" else {}


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO on the CPU (extra openvino). fp32 stays fp32; in the other variants, operations that are not int8 run in 16 bits.

    bfloat16 or float16, whichever the CPU supports: a ViT in int8 is 1.2 times faster so (docs/benchmarks.md).
    """

    name: str = "openvino"
    format: ClassVar[Format] = "onnx"

    def open(self, path: Path, precision: str, threads: int, fingerprint: str = "") -> Session:
        try:
            import openvino
        except ImportError:
            raise ContractError(
                "the runtime openvino is not installed; install the extra openvino, or choose the runtime onnxruntime"
            ) from None
        core = openvino.Core()
        try:
            compiled = core.compile_model(str(path), "CPU", self._settings(core, precision, threads))
        except Exception as error:  # its C++ exceptions arrive as RuntimeErrors of several lines
            raise ContractError(f"{path.name}: OpenVINO cannot load it: {last_line(error)}") from None
        idle: list[Any] = []  # a request serves one caller at a time; append and pop are atomic

        def run(batch: np.ndarray) -> np.ndarray:
            request = idle.pop() if idle else compiled.create_infer_request()
            request.infer([np.ascontiguousarray(batch)], share_inputs=True)
            vectors = np.array(request.get_output_tensor(0).data)
            idle.append(request)
            return vectors

        return run

    def _settings(self, core: Any, precision: str, threads: int) -> dict[str, Any]:
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        short = next((kind for kind in ("BF16", "FP16") if kind in able), "FP32")
        hint = "f32" if precision == "fp32" else {"BF16": "bf16", "FP16": "f16", "FP32": "f32"}[short]
        streams = max(1, (os.cpu_count() or 1) // threads)
        return {
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": streams,  # callers at a time, each with `threads`
            "INFERENCE_NUM_THREADS": streams * threads,
            "ENABLE_CPU_PINNING": False,  # several workers of one machine would be pinned to the same cores
        }


ONNXRUNTIME = OnnxRuntime("onnxruntime", "CPUExecutionProvider")
RUNTIMES: dict[str, Runtime] = {
    r.name: r
    for r in (
        ONNXRUNTIME,
        OnnxRuntime("onnxruntime-cuda", "CUDAExecutionProvider"),
        OnnxRuntime("onnxruntime-tensorrt", "TensorrtExecutionProvider"),
        OpenVino(),
    )
}


def runtime(name: str, available: dict[str, Runtime] = RUNTIMES) -> Runtime:
    """The runtime of this name. Raises ValueError listing the names there are."""
    try:
        return available[name]
    except KeyError:
        raise ValueError(f"there is no encoder runtime {name!r}; choose one of {', '.join(sorted(available))}") from None


def last_line(error: Exception) -> str:
    """The last line of an error's message: C++ libraries put the reason below the places it passed."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
