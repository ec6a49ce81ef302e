"""Checkpoints: whole or absent, and damage is named."""

from pathlib import Path

import pytest
import torch

from tasks import storage
from tasks.encoder.train.checkpoint import RECORD, WEIGHTS, latest, read_checkpoint, save_checkpoint, save_step, step_name
from tasks.errors import TrainingError
from tests.servers import s3_server


def save(folder: Path, step: int) -> None:
    save_checkpoint(folder / step_name(step), {"w": torch.full((3,), float(step))}, {"step": step})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 3)
    found = read_checkpoint(str(tmp_path / step_name(3)), tmp_path)
    assert found is not None
    assert found.values == {"step": 3}
    assert found.tensors["w"].tolist() == [3.0, 3.0, 3.0]


def test_a_checkpoint_without_its_record_does_not_exist(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save(tmp_path, 9)
    (tmp_path / step_name(9) / RECORD).unlink()
    found = latest(str(tmp_path))
    assert found is not None
    assert found.values["step"] == 3


def test_only_the_newest_is_kept_and_another_machine_finds_it_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as endpoint:
        for name, value in {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        for uri in ("s3://shop/towers/teacher/steps", str(tmp_path / "steps")):
            assert latest(uri) is None
            for step in (2, 4, 10):
                save_step(uri, step, {"w": torch.full((3,), float(step))}, {"step": step})
            found = latest(uri)
            assert found is not None
            assert (found.values, found.tensors["w"].tolist()) == ({"step": 10}, [10.0, 10.0, 10.0])
            assert len(storage.list_folders(uri)) == 1


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
        latest(str(tmp_path))
