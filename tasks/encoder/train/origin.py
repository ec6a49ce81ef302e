"""Where the weights come from that a teacher starts from: for the recipe's key, and the manifest of what is made of them."""

from dataclasses import replace
from pathlib import Path

from serving.contract.files import sha256_file
from serving.contract.provenance import Origin
from tasks.encoder.config import FOLDER, EncoderConfig, TowerConfig
from tasks.encoder.train.open_clip_models import weights_path
from tasks.encoder.train.timm_models import TIMM
from tasks.encoder.train.weights import PACKAGES, is_checkpoint, package_file
from tasks.errors import TrainingError


def with_checksums(config: EncoderConfig) -> EncoderConfig:
    """The config with the sha256 of each tower's weights where they are a local file. Raises TrainingError where it is missing."""
    return replace(config, teacher=_with_checksum(config.teacher), student=_with_checksum(config.student))


def _with_checksum(tower: TowerConfig) -> TowerConfig:
    path = weights_path(tower) if tower.open_clip.startswith(FOLDER) else None
    if is_checkpoint(tower.pretrained):
        path = Path(tower.pretrained)
    if path is None:
        return tower
    if not path.is_file():
        raise TrainingError(f"the checkpoint {path} does not exist; give the absolute path of a file that every worker has")
    return replace(tower, sha256=sha256_file(path))


def weights_origin(config: EncoderConfig) -> Origin | None:
    """Name, and tag or sha256, of the teacher's weights; None for random ones. A file that is not local is downloaded.

    Raises TrainingError where a local file is not the one that was planned with.
    """
    tower = config.teacher
    if not tower.starts_pretrained:
        return None
    name, tag = tower.open_clip or tower.timm, tower.pretrained
    path: Path | None = None
    if tag in PACKAGES:
        path = package_file(tag)
    elif is_checkpoint(tag):
        path, tag = Path(tag), ""
    elif tower.open_clip and not tag:
        path = weights_path(tower)
    elif tag == TIMM:
        tag = tower.timm.partition(".")[2] or TIMM
    sha256 = sha256_file(path) if path is not None else ""
    if tower.sha256 and sha256 != tower.sha256:
        raise TrainingError(f"the weights {path} have sha256 {sha256}, planned was {tower.sha256}; start the run anew")
    return Origin(name=name, tag=tag, sha256=sha256, licence=config.licence)
