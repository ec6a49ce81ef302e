"""timm's image towers as encoders: weights from its hub, a file or a package, and a projection to the version's dimension."""

from pathlib import Path
from typing import Any

import timm
from open_clip.timm_model import TimmModel
from torch import nn

from serving.contract.addresses import error_line
from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.config import TEACHER, EncoderConfig, TowerConfig
from tasks.encoder.train import residual_net, short_lite  # noqa: F401  they register our own towers with timm
from tasks.encoder.train.open_clip_models import FITS
from tasks.encoder.train.weights import PACKAGES, load_into, read_package, read_state_dict
from tasks.errors import TrainingError

VOCABULARY = 49408
TIMM = "timm"
"""What `pretrained` says for timm's own weights of a model."""
PLAIN_MEAN, PLAIN_STD = (0.45, 0.45, 0.45), (0.27, 0.27, 0.27)
"""For towers that start from random weights; pretrained ones bring their own."""
CROPS = {"center": "shortest", "squash": "squash", "border": "longest"}
"""timm's crop_mode, and open_clip's name of it."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def custom_config(config: EncoderConfig, pretrained: bool = False) -> dict[str, Any]:
    """open_clip's config of a teacher with a timm image tower."""
    text = config.text
    return {
        "embed_dim": config.dim,
        "vision_cfg": {
            "timm_model_name": config.teacher.timm,
            "timm_model_pretrained": pretrained,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": config.preprocess.size,
        },
        "text_cfg": {
            "context_length": text.context,
            "vocab_size": VOCABULARY,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
    }


def build_tower(tower: TowerConfig, dim: int, size: int, load_pretrained: bool) -> TimmModel:
    """A timm network with a linear projection to `dim`. Raises TrainingError."""
    downloads = load_pretrained and tower.pretrained == TIMM
    try:
        network = TimmModel(tower.timm, dim, image_size=size, pool="", pretrained=downloads)
    except Exception as error:  # unknown names and failed downloads arrive as various classes
        raise no_tower(tower, error) from None
    return fit_tower(network, tower, dim, size, load_pretrained)


def fit_tower(network: TimmModel, tower: TowerConfig, dim: int, size: int, load_pretrained: bool) -> TimmModel:
    """Loads the tower's weights, then fits it to pictures of `size` and vectors of `dim`; features of that width stay as they are."""
    trunk = network.trunk
    wide = features(trunk)
    if wide == dim:
        network.head = nn.Identity()
    elif wide != trunk.num_features:
        network.head.proj = nn.Linear(wide, dim, bias=False)
    if load_pretrained and tower.pretrained not in ("", TIMM, TEACHER):
        _load(network, tower)
    if hasattr(trunk, "set_input_size"):
        try:
            network.set_input_size(size)
        except Exception as error:
            own = input_size(trunk)
            raise TrainingError(
                f"{tower.timm} does not take pictures of {size} pixels ({error_line(error, 160)}); take its own size, {own}"
            ) from None
    return network


def no_tower(tower: TowerConfig, error: Exception) -> TrainingError:
    """What to say of a network that timm does not build, or whose weights cannot be downloaded."""
    if tower.pretrained == TIMM and tower.timm.partition(".")[0] in timm.list_models():
        return TrainingError(
            f"{tower.timm}: the weights could not be downloaded ({error_line(error, 160)}); set `pretrained` to a local checkpoint file, "
            "or to '' to start from random weights"
        )
    return TrainingError(f"the image tower {tower.timm!r} cannot be built: {error_line(error, 160)}; name a timm model")


def statistics(tower: TowerConfig, trunk: Any) -> Statistics:
    """Mean and deviation of the pixels that the tower's weights were trained with."""
    if tower.pretrained in ("", TEACHER):
        return PLAIN_MEAN, PLAIN_STD
    if tower.pretrained in PACKAGES:
        package = PACKAGES[tower.pretrained]
        return (package.mean,) * 3, (package.std,) * 3
    known = _config_of(trunk)
    return tuple(known.get("mean", PLAIN_MEAN)), tuple(known.get("std", PLAIN_STD))


def tower_facts(tower: TowerConfig) -> tuple[int, PreprocessSpec]:
    """The width of a timm tower's own features, and the preprocessing it was trained with. Raises TrainingError."""
    try:
        trunk = timm.create_model(tower.timm)
    except Exception as error:
        raise no_tower(tower, error) from None
    size = PACKAGES[tower.pretrained].size if tower.pretrained in PACKAGES else input_size(trunk)
    fit = FITS[CROPS[_config_of(trunk).get("crop_mode", "center")]]
    return features(trunk), PreprocessSpec(size=size, fit=fit)


def features(trunk: Any) -> int:
    """The width of what a timm network gives: open_clip counts before a head's own convolution, as mobilenetv3 and 4 have one."""
    return int(getattr(trunk, "head_hidden_size", trunk.num_features))


def input_size(trunk: Any) -> int:
    """Side of the pictures that a timm network was trained on."""
    return int(_config_of(trunk)["input_size"][-1])


def _config_of(trunk: Any) -> dict[str, Any]:
    return getattr(trunk, "pretrained_cfg", None) or trunk.default_cfg


def _load(network: TimmModel, tower: TowerConfig) -> None:
    """Loads a package, a whole tower that was saved here, or a classifier of timm's without its last layer."""
    if tower.pretrained in PACKAGES:
        whole = timm.create_model(tower.timm)
        state, path = read_package(tower.pretrained, whole), Path(tower.pretrained)
    else:
        path = Path(tower.pretrained)
        state = read_state_dict(path)
        if set(state) == set(network.state_dict()):
            load_into(network, state, path, tower.timm)
            return
    classifier = _config_of(network.trunk).get("classifier", "head")
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    own = network.trunk.state_dict()
    trunk = {k: v for k, v in state.items() if k in own or not k.startswith(tuple(f"{n}." for n in names))}
    load_into(network.trunk, trunk, path, tower.timm)
