"""Finds an encoder by name: a preset, a recipe file, open_clip's or timm's models, the hub, a folder, or a package of weights."""

import logging
from dataclasses import replace

from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.config import FOLDER, HUB, NONE, EncoderConfig, TowerConfig
from tasks.encoder.presets import PRESETS, PRETRAINED, fine_tuned, preset
from tasks.errors import TrainingError

log = logging.getLogger(__name__)

TIMM = "timm:"
RANDOM = "random"
"""In place of weights, where an architecture with random ones is meant."""
HOW = (
    "a recipe file (.toml), open_clip's MODEL:TAG or MODEL:checkpoint file, hf-hub:organisation/name, local-dir:folder, timm:MODEL "
    "(its own weights) or timm:MODEL:checkpoint file, or a package of weights"
)


def find_encoder(name: str) -> EncoderConfig:
    """The config of an encoder by name; what is not a preset or a recipe takes dimension and preprocessing from its model.

    Raises TrainingError in one sentence.
    """
    if name in PRESETS:
        return preset(name)
    if name.endswith(".toml"):
        from tasks.encoder.recipe_file import read_recipe

        return read_recipe(name)
    return from_tower(name, _tower(name))


def from_tower(name: str, tower: TowerConfig) -> EncoderConfig:
    """The config of a network with weights: dimension and preprocessing are the model's own. Raises TrainingError."""
    dim, spec = _facts(tower)
    licence = next((p.licence for p in PRETRAINED if p.tower == tower), "")
    return fine_tuned(name, tower, dim, spec, licence)


def as_it_is(config: EncoderConfig) -> EncoderConfig:
    """The config without a training of the teacher: vectors of its own width. Raises TrainingError."""
    dim = _facts(config.teacher)[0] if config.teacher.timm else config.dim
    return replace(config, dim=dim, teacher_recipe=replace(config.teacher_recipe, steps=0))


def pretrained_start(config: EncoderConfig) -> EncoderConfig:
    """The pretrained encoder that a training starts from, as it is: its own dimension and preprocessing. Raises TrainingError."""
    dim, spec = _facts(config.teacher)
    return replace(config, dim=dim, preprocess=spec)


def choose_training(config: EncoderConfig, training: str | None, student: str | None) -> EncoderConfig:
    """The config with a run's choices: training "none" or None, a student's timm name, "none", or None. Raises TrainingError."""
    if training not in (None, "", NONE):
        raise TrainingError(f"there is no training {training!r}; choose none, or leave it empty for the preset's")
    config = config.with_student(student or None)
    return as_it_is(config) if training == NONE else config


def without_labels(config: EncoderConfig, epochs: float | None, student: str | None) -> EncoderConfig:
    """The config for a catalogue without train photos: a pretrained encoder as it is, without a student, unless one is asked for.

    With `epochs`, and from random weights, it is trained on views of the product pictures: whether that helps, synthetic queries
    cannot tell (docs/decisions/0088). Raises TrainingError.
    """
    if not config.teacher_recipe.steps:
        return config
    if not config.teacher.starts_pretrained or epochs is not None:
        log.info("no train photos: trained on the product pictures, each augmented anew in every batch")
        return config
    log.info("no train photos: the pretrained encoder is taken as it is; give epochs to train it on the product pictures")
    return as_it_is(config if student else config.with_student(NONE))


def _tower(name: str) -> TowerConfig:
    from tasks.encoder.train.weights import PACKAGES

    if name in PACKAGES:
        return TowerConfig(timm=PACKAGES[name].timm, pretrained=name)
    if name.startswith((HUB, FOLDER)):
        return TowerConfig(open_clip=name)
    if name.startswith(TIMM):
        rest = name.removeprefix(TIMM)
        model, _, weights = (rest, "", "") if rest.startswith(HUB) else rest.partition(":")
        return TowerConfig(timm=model, pretrained="" if weights == RANDOM else weights or "timm")
    model, _, weights = name.partition(":")
    if not _is_open_clip(model):
        raise TrainingError(f"there is no encoder preset {name!r}; choose one of {', '.join(sorted(PRESETS))}, {HOW}")
    if not weights:
        import open_clip

        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none of its own"
        raise TrainingError(
            f"{name} names no weights; give {model}:TAG ({tags}), {model}:checkpoint file, or {model}:{RANDOM} for random ones"
        )
    return TowerConfig(open_clip=model, pretrained="" if weights == RANDOM else weights)


def _is_open_clip(model: str) -> bool:
    import open_clip

    return model.endswith(".json") or model in open_clip.list_models()


def _facts(tower: TowerConfig) -> tuple[int, PreprocessSpec]:
    """The width of a network's vectors, and its own preprocessing."""
    if tower.timm:
        from tasks.encoder.train.timm_models import tower_facts

        return tower_facts(tower)
    from tasks.encoder.train.open_clip_models import find_architecture

    architecture = find_architecture(tower)
    return architecture.dim, architecture.spec()
