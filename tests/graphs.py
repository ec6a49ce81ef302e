"""Exports without what takes their time: the children that open graphs first, and writing the graph of the same weights again."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from serving.contract.files import ContractError
from serving.contract.graph_check import GraphCheck
from serving.contract.runtimes import Runtime
from tasks.encoder.export import export
from tasks.encoder.export.onnx_graph import write_onnx


def open_here(name: str, path: Path, runtime: Runtime, inputs: np.ndarray) -> None:
    """What `GraphCheck` does in its child, and the sentence that it makes of what the child says."""
    try:
        runtime.open(path, name.partition(".")[2], 1)(inputs)
    except ContractError as error:
        raise ContractError(f"{name} in {runtime.name}: {str(error).removeprefix(f'{path.name}: ')}") from None


def open_all_here(patch: pytest.MonkeyPatch) -> None:
    """Lets the steps of train_encoder, which check graphs by `GraphCheck`, open them in this process."""
    patch.setattr(GraphCheck, "__call__", lambda _, *given: open_here(*given))


def write_once(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets exports write the fp32 graph of the same weights once, and copy it from `folder` afterwards: the bytes are the same."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(module: nn.Module, example: Tensor, path: Path) -> None:
        weights = hashlib.sha256(f"{path.name} {module}".encode())
        for name, tensor in module.state_dict().items():
            weights.update(name.encode() + tensor.detach().numpy().tobytes())
        kept = folder / f"{weights.hexdigest()}.onnx"
        if not kept.exists():
            write_onnx(module, example, kept)
        shutil.copy(kept, path)

    patch.setattr(export, "write_onnx", write)
