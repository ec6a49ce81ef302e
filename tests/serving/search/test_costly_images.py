"""The child process that decodes costly images: one that ended meanwhile costs no good picture."""

import io

import numpy as np
import pytest
from PIL import Image

from serving.contract.image_limits import ImageLimits, ImageRejected
from serving.contract.preprocess import PreprocessSpec, decode
from serving.search import costly_images
from serving.search.costly_images import CostlyImages
from serving.telemetry.timing import Deadline

SPEC = PreprocessSpec(size=16)


def test_a_child_that_ends_as_it_is_asked_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), (9, 90, 200)).save(stream, "PNG")
    data = stream.getvalue()
    images = CostlyImages(ImageLimits())
    try:
        expected = decode(data, SPEC)
        assert np.array_equal(images.decode(data, SPEC, None, Deadline.after(20)), expected)
        first = images.child
        assert first is not None
        real = costly_images._exchange

        def asked_too_late(child: object, message: bytes) -> np.ndarray:
            if child is first:
                first.kill()
            return real(child, message)  # type: ignore[arg-type]

        monkeypatch.setattr(costly_images, "_exchange", asked_too_late)
        assert np.array_equal(images.decode(data, SPEC, None, Deadline.after(20)), expected)
        monkeypatch.setattr(costly_images, "COMMAND", ("false",))
        images.close()
        with pytest.raises(ImageRejected, match="cannot be decoded"):
            images.decode(data, SPEC, None, Deadline.after(20))
    finally:
        images.close()
