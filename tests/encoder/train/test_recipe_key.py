"""What makes another recipe: the data where something is learnt from it, and the bytes of a local file of weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serving.contract.files import sha256_file
from tasks.encoder.config import EncoderConfig, TowerConfig
from tasks.encoder.lookup import as_it_is
from tasks.encoder.presets import preset
from tasks.encoder.train.origin import weights_origin, with_checksums
from tasks.encoder.train.tower_store import recipe_key
from tasks.errors import TrainingError

MONDAY, SUNDAY = "0" * 64, "1" * 64


def from_file(path: Path) -> EncoderConfig:
    tower = TowerConfig(timm="vitrine_residual_w8", pretrained=str(path))
    return with_checksums(replace(preset("tiny"), teacher=tower))


def test_new_data_is_another_recipe_only_where_something_is_trained() -> None:
    trained = preset("efficientnet_lite0")
    adopted = as_it_is(trained)
    assert recipe_key(trained, MONDAY) != recipe_key(trained, SUNDAY)
    assert recipe_key(adopted, MONDAY) == recipe_key(adopted, SUNDAY)
    distilled = adopted.with_student("vitrine_residual_w8")
    assert recipe_key(distilled, MONDAY) != recipe_key(distilled, SUNDAY)


def test_another_file_under_an_old_name_is_another_recipe(tmp_path: Path) -> None:
    path = tmp_path / "shop.pt"
    torch.save({"a": torch.zeros(2)}, path)
    first = from_file(path)
    assert first.teacher.sha256 == sha256_file(path)
    assert recipe_key(first, MONDAY) == recipe_key(from_file(path), MONDAY)
    assert EncoderConfig.from_dict(first.as_dict()) == first
    torch.save({"a": torch.ones(2)}, path)
    assert recipe_key(from_file(path), MONDAY) != recipe_key(first, MONDAY)
    with pytest.raises(TrainingError, match=r"shop.pt have sha256 .*, planned was .*; start the run anew"):
        weights_origin(first)
    path.unlink()
    with pytest.raises(TrainingError, match="the absolute path of a file that every worker has"):
        from_file(path)


@pytest.mark.parametrize("name", ["demo", "efficientnet_lite0", "vit_b16", "marqo_ecommerce_b"])
def test_weights_that_have_a_name_are_not_hashed(name: str) -> None:
    config = preset(name)
    assert with_checksums(config) == config
