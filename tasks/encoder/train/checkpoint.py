"""Checkpoints: a safetensors file, and a JSON file with metadata and checksum, written last."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from serving.contract.files import ContractError, FileRef, atomic_write, describe, verify
from tasks import storage
from tasks.errors import TrainingError

WEIGHTS, RECORD = "weights.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and plain values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Writes the checkpoint; it exists once its JSON does. Shared tensors are written separately."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, temporary)
    record = {"weights": describe(folder / WEIGHTS, WEIGHTS).model_dump(), "values": values}
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record))


def read_checkpoint(uri: str, folder: Path) -> Checkpoint | None:
    """The checkpoint at a URI, checksum verified; None without one. Raises TrainingError when damaged.

    Weights that lie in s3:// are fetched into `folder` first.
    """
    if not storage.exists(storage.join(uri, RECORD)):
        return None
    try:
        record = storage.read_json(storage.join(uri, RECORD))
        weights = verify(storage.local_copy(storage.join(uri, WEIGHTS), folder), FileRef(**record["weights"]))
        return Checkpoint(load_file(weights), record["values"])
    except (ContractError, OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"the checkpoint in {uri} is damaged ({error}); delete that folder to start again") from None


def store_checkpoint(folder: Path, uri: str) -> None:
    """Copies a checkpoint to the folder `uri` of the store, its JSON last."""
    for name in (WEIGHTS, RECORD):
        storage.put_file(folder / name, storage.join(uri, name))


def save_step(uri: str, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Writes the checkpoint of a step below the folder `uri`, local or s3://, then deletes those of other steps."""
    target = storage.join(uri, step_name(step))
    if uri.startswith("s3://"):
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), tensors, values)
            store_checkpoint(Path(folder), target)
    else:
        save_checkpoint(storage.local_path(target), tensors, values)
    for old in _steps(uri):
        if not old.endswith(f"/{step_name(step)}"):
            storage.delete_folder(old)


def latest(uri: str) -> Checkpoint | None:
    """The newest complete checkpoint below the folder `uri` (step-<number>), or None."""
    with tempfile.TemporaryDirectory() as folder:
        for candidate in reversed(_steps(uri)):
            found = read_checkpoint(candidate, Path(folder))
            if found is not None:
                return found
    return None


def _steps(uri: str) -> list[str]:
    return [folder for folder in storage.list_folders(uri) if folder.rpartition("/")[2].startswith("step-")]


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: "optimizer.<parameter number>.<name>"."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{k}": v for k, v in module.state_dict().items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
