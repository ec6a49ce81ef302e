"""The presets say of their models what open_clip and timm say of them."""

import pytest

from tasks.encoder.presets import PRESETS, PRETRAINED, Pretrained, preset
from tasks.encoder.train.open_clip_models import find_architecture
from tasks.encoder.train.timm_models import tower_facts
from tasks.encoder.train.weights import PACKAGES
from tasks.errors import TrainingError


@pytest.mark.parametrize(
    "published", [p for p in PRETRAINED if not p.tower.open_clip.startswith("hf-hub:")], ids=lambda p: p.name
)
def test_dimension_and_preprocessing_are_the_models_own(published: Pretrained) -> None:
    if published.tower.timm:
        assert tower_facts(published.tower) == (published.dim, published.preprocess)
        assert published.licence == PACKAGES[published.tower.pretrained].licence
    else:
        architecture = find_architecture(published.tower)
        assert (architecture.dim, architecture.spec()) == (published.dim, published.preprocess)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_no_mistakes_and_survives_being_written(name: str) -> None:
    config = preset(name)
    assert list(config.problems()) == []
    assert config.name == name
    assert type(config).from_dict(config.as_dict()) == config


@pytest.mark.parametrize("published", PRETRAINED, ids=lambda p: p.name)
def test_a_published_encoder_says_whose_it_is(published: Pretrained) -> None:
    assert published.licence
    assert published.source
    assert published.tower.starts_pretrained
    assert published.config().licence == published.licence


def test_an_unknown_preset_is_told_the_names_there_are() -> None:
    with pytest.raises(TrainingError, match="there is no encoder preset 'huge'; choose one of demo, "):
        preset("huge")
