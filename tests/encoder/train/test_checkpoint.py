"""Checkpoints: whole or absent, and damage is named."""

from pathlib import Path

import pytest
import torch

from tasks.encoder.train.checkpoint import RECORD, WEIGHTS, keep_only, latest, load_checkpoint, save_checkpoint, step_name
from tasks.errors import TrainingError


def save(folder: Path, step: int) -> None:
    save_checkpoint(folder / step_name(step), {"w": torch.full((3,), float(step))}, {"step": step})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 3)
    found = load_checkpoint(tmp_path / step_name(3))
    assert found is not None
    assert found.values == {"step": 3}
    assert found.tensors["w"].tolist() == [3.0, 3.0, 3.0]


def test_a_checkpoint_without_its_record_does_not_exist(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save(tmp_path, 9)
    (tmp_path / step_name(9) / RECORD).unlink()
    found = latest(tmp_path)
    assert found is not None
    assert found.values["step"] == 3
    keep_only(tmp_path, 9)
    assert latest(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "record"])
def test_damage_is_an_error_that_says_what_to_do(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 3)
    weights, record = tmp_path / step_name(3) / WEIGHTS, tmp_path / step_name(3) / RECORD
    data = weights.read_bytes()
    if damage == "truncate":
        weights.write_bytes(data[:-2])
    elif damage == "flip":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "remove":
        weights.unlink()
    else:
        record.write_text(record.read_text()[:-10])
    with pytest.raises(TrainingError, match=r"is damaged .*; delete that folder to start again"):
        latest(tmp_path)
