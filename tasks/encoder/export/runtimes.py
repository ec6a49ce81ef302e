"""All inference runtimes of the pipeline: those of serving, and PyTorch for batch jobs on GPUs."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from serving.contract.addresses import error_line
from serving.contract.files import ContractError
from serving.contract.runtimes import RUNTIMES, Format, Runtime, Session
from serving.contract.runtimes import runtime as named
from tasks.errors import SettingsError


@dataclass(frozen=True)
class TorchScript:
    """TorchScript on the GPU, or the CPU without one. fp16 runs under autocast."""

    name: str = "torch"
    format: ClassVar[Format] = "torchscript"

    def open(self, path: Path, precision: str, threads: int, fingerprint: str = "") -> Session:
        import torch  # a worker that runs ONNX never pays for it

        if precision == "int8":
            raise ContractError(f"{path.name}: the runtime {self.name} runs fp32 and fp16, not int8")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.allow_tf32 = False  # fp32 stays fp32; matrix products do already
        if device.type == "cpu":
            torch.set_num_threads(threads)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PyTorch announces that TorchScript will go
                module = torch.jit.load(str(path), map_location=device)
        except Exception as error:  # a damaged archive arrives as various classes
            raise ContractError(f"{path.name}: PyTorch cannot load it: {error_line(error)}") from None

        def run(batch: np.ndarray) -> np.ndarray:
            inputs = torch.from_numpy(np.array(batch)).to(device)
            with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=precision == "fp16"):
                return module(inputs).float().cpu().numpy()

        return run


def runtime(name: str) -> Runtime:
    """The runtime of this name. Raises SettingsError listing the valid names."""
    torch_script = TorchScript()
    try:
        return named(name, RUNTIMES | {torch_script.name: torch_script})
    except ValueError as error:
        raise SettingsError(str(error)) from None
