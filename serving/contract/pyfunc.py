"""An encoder version as MLflow's python_function: image bytes in, unit vectors out, decoded and encoded as a replica does it.

Imports no MLflow. `mlflow.pyfunc.load_model` imports this module by the name that the version's MLmodel gives, from the copy in the
version's own folder (tasks/encoder/export/mlflow_flavor.py), so a version keeps the preprocessing that it was made with.
"""

from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.encoder import EncoderFolder
from serving.contract.preprocess import ImageRejected, decode

COLUMN = "image"


class ImageEncoder:
    """The query encoder of a version; its file is opened as a replica opens it: checksum, fingerprint and golden outputs verified."""

    def __init__(self, folder: Path) -> None:
        opened = EncoderFolder(folder)
        self.preprocess = opened.manifest.preprocess
        self.encoder = opened.open(opened.manifest.query)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Unit vectors (n, dim) float32 of the n >= 1 encoded images (bytes) in the column `image` of a table.

        Raises ImageRejected with the place of the first image that cannot be used.
        """
        pixels = [self._pixels(place, bytes(image)) for place, image in enumerate(model_input[COLUMN])]
        return self.encoder.encode(np.stack(pixels))

    def _pixels(self, place: int, image: bytes) -> np.ndarray:
        try:
            return decode(image, self.preprocess)
        except ImageRejected as error:
            raise ImageRejected(error.reason, f"image {place}: {error}") from None


def _load_pyfunc(path: str) -> ImageEncoder:
    """What MLflow calls, with the version's folder."""
    return ImageEncoder(Path(path))
