"""open_clip's models by name: their architecture, preprocessing and weights, from its list, Hugging Face's hub, or a folder."""

import json
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from serving.contract.addresses import error_line
from serving.contract.files import atomic_write
from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.config import FOLDER, HUB, TowerConfig
from tasks.encoder.train.weights import (
    SUFFIXES,
    from_transformers,
    is_checkpoint,
    is_transformers_clip,
    load_into,
    read_state_dict,
)
from tasks.errors import TrainingError

CONFIG_FILE = "open_clip_config.json"
"""Architecture and preprocessing beside a model's weights: open_clip's own format, which "local-dir:" reads."""
REQUIRED = ("embed_dim", "vision_cfg", "text_cfg")
FITS: dict[str, Literal["squash", "crop", "pad"]] = {"squash": "squash", "shortest": "crop", "longest": "pad"}
"""open_clip's resize_mode, and our name of it."""
LOCAL = "set `pretrained` to a local checkpoint file, or to '' to start from random weights"


@dataclass(frozen=True)
class Architecture:
    """A model without its weights: open_clip's `model` config with the activation in it, and the `preprocess` of its pictures."""

    model: dict[str, Any]
    preprocess: dict[str, Any]

    @property
    def dim(self) -> int:
        return int(self.model["embed_dim"])

    @property
    def size(self) -> int:
        size = self.model["vision_cfg"].get("image_size", self.preprocess["size"])
        return int(size[0] if isinstance(size, (list, tuple)) else size)

    @property
    def on_timm(self) -> bool:
        """Whether timm builds the image tower."""
        return "timm_model_name" in self.model["vision_cfg"]

    def spec(self) -> PreprocessSpec:
        """The model's own preprocessing in our terms."""
        return PreprocessSpec(size=self.size, fit=FITS[self.preprocess["resize_mode"]])

    def write(self, folder: Path, size: int) -> None:
        """Writes the architecture for pictures of `size` beside the weights in `folder`, which open_clip then opens by path."""
        model = deepcopy(self.model)
        model["vision_cfg"]["image_size"] = size
        with atomic_write(folder / CONFIG_FILE) as path:
            path.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": self.preprocess | {"size": size}}, indent=1))

    @classmethod
    def read(cls, path: Path, origin: str = "") -> "Architecture":
        """Reads open_clip's config of a model, with or without its preprocessing. Raises TrainingError."""
        what = origin or f"the model config {path}"
        try:
            keys = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise TrainingError(f"{what} cannot be read: {error}") from None
        model = keys.get("model_cfg", keys) if isinstance(keys, dict) else {}
        missing = set(REQUIRED) - set(model)
        if missing:
            raise TrainingError(f"{what} lacks {', '.join(sorted(missing))}; it must be in open_clip's format")
        return cls(model, merge_preprocess_dict(PreprocessCfg(), keys.get("preprocess_cfg", {})))


def find_architecture(tower: TowerConfig) -> Architecture:
    """The architecture that a name means, downloaded where it lies on the hub. Raises TrainingError.

    The activation follows from the tag: open_clip itself only warns where OpenAI's weights meet a model without quick-GELU, and
    gives other vectors (open_clip#771).
    """
    name = tower.open_clip
    if name.startswith(FOLDER):
        found = Architecture.read(Path(name.removeprefix(FOLDER)) / CONFIG_FILE)
    elif name.startswith(HUB):
        found = Architecture.read(from_hub(name, CONFIG_FILE), f"the model config of {name}")
    elif name.endswith(".json"):
        found = Architecture.read(Path(name))
    else:
        found = _listed(name, tower.pretrained)
    if "multimodal_cfg" in found.model:
        raise TrainingError(f"{name} is a CoCa model, which gives tokens beside its vector; name a CLIP or SigLIP model")
    if tower.quick_gelu:
        found.model["quick_gelu"] = True
    return found


def _listed(name: str, pretrained: str) -> Architecture:
    model = open_clip.get_model_config(name)
    if model is None:
        raise TrainingError(f"open_clip has no model {name!r}; `open_clip.list_models()` names those it has")
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if pretrained and not tag and not is_checkpoint(pretrained):
        raise TrainingError(f"open_clip has no weights {pretrained!r} for {name}; it has {', '.join(tags)}")
    if tag.get("quick_gelu"):
        model["quick_gelu"] = True
    usual = tag or (open_clip.get_pretrained_cfg(name, tags[0]) if tags else {})  # a checkpoint file does not say how it sees
    return Architecture(model, merge_preprocess_dict(PreprocessCfg(), usual))


def create_model(architecture: Architecture, size: int) -> Any:
    """The model with random weights for pictures of `size`. Raises TrainingError when open_clip cannot build it."""
    with tempfile.TemporaryDirectory() as folder:
        architecture.write(Path(folder), architecture.size)
        try:
            return open_clip.create_model(f"{FOLDER}{folder}", load_weights=False, force_image_size=size, pretrained_text=False)
        except Exception as error:  # a config of one's own fails in as many ways as there are fields
            raise TrainingError(
                f"open_clip cannot build the model for pictures of {size} pixels ({error_line(error, 160)}); mend its config, or take its "
                f"own size, {architecture.size}"
            ) from None


def weights_path(tower: TowerConfig) -> Path | None:
    """The file of the model's weights, downloaded where it must be; None for random weights. Raises TrainingError."""
    name, pretrained = tower.open_clip, tower.pretrained
    if name.startswith(FOLDER):
        return _in_folder(Path(name.removeprefix(FOLDER)))
    if name.startswith(HUB):
        return from_hub(name)
    if not pretrained:
        return None
    if is_checkpoint(pretrained):
        if not Path(pretrained).is_file():
            raise TrainingError(f"the checkpoint {pretrained} of {name} does not exist; give the path of a local file")
        return Path(pretrained)
    known = open_clip.get_pretrained_cfg(name, pretrained)
    what = f"{name} with pretrained={pretrained!r}"
    return _downloaded(what, "the weights", lambda: open_clip.download_pretrained(known), LOCAL)


def load_weights(model: Any, path: Path, what: str) -> None:
    """Loads a checkpoint into a model, converting what other libraries saved. Raises TrainingError in one sentence."""
    if path.suffix not in (".npz", ".npy"):  # big_vision's, which open_clip reads itself
        state = read_state_dict(path)
        if is_transformers_clip(state):
            load_into(model, from_transformers(state), path, what)
            return
    try:
        open_clip.load_checkpoint(model, str(path), weights_only=True)
    except Exception:
        load_into(model, read_state_dict(path), path, what)  # says in one sentence how it differs


def _in_folder(folder: Path) -> Path:
    """The file of weights in a folder: open_clip's own, else Hugging Face's, else the only one."""
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES) if folder.is_dir() else []
    usual = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
    named = {p.name: p for p in files}
    found = next((named[n] for n in usual if n in named), files[0] if len(files) == 1 else None)
    if found is None:
        there = ", ".join(named) or "no checkpoint"
        raise TrainingError(f"{FOLDER}{folder} has no {usual[0]}, and not exactly one other checkpoint: it has {there}")
    return found


def from_hub(name: str, file: str = "") -> Path:
    """A file of a repository on the hub, downloaded once; without `file` its weights. Raises TrainingError."""
    remedy = f"copy the repository into a folder and name it {FOLDER}<folder>"
    repository = name.removeprefix(HUB)
    return _downloaded(name, file or "the weights", lambda: download_pretrained_from_hf(repository, file or None), remedy)


def _downloaded(name: str, what: str, download: Callable[[], str], remedy: str) -> Path:
    try:
        return Path(download())
    except Exception as error:  # a download fails in as many ways as there are networks; all mean the same to the reader
        raise TrainingError(f"{name}: {what} could not be downloaded ({error_line(error, 160)}); {remedy}") from None
