"""Where the weights come from that a teacher starts from: for the manifest of what is made of them."""

from pathlib import Path

from serving.contract.files import sha256_file
from serving.contract.provenance import Origin
from tasks.encoder.config import EncoderConfig
from tasks.encoder.train.open_clip_models import weights_path
from tasks.encoder.train.timm_models import TIMM
from tasks.encoder.train.weights import PACKAGES, is_checkpoint, package_file


def weights_origin(config: EncoderConfig) -> Origin | None:
    """Name, and tag or sha256, of the teacher's weights; None for random ones. A file that is not local is downloaded."""
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
    return Origin(name=name, tag=tag, sha256=sha256_file(path) if path is not None else "", licence=config.licence)
