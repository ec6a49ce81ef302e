"""The child process of serving/search/costly_images.py: decodes an image after the other from standard input."""

import json
import os
import resource
import select
import sys

from PIL import AvifImagePlugin

from serving.contract.box import Box
from serving.contract.image_limits import ImageLimits, ImageRejected
from serving.contract.preprocess import PreprocessSpec, decode

NICE = 10
"""Searches have the processor first."""
IDLE_S = 30.0


def main() -> None:
    """Answers requests until none comes for IDLE_S, or the parent is gone."""
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while select.select([stdin], [], [], IDLE_S)[0] and (line := stdin.readline()):
        request = json.loads(line)
        stdout.write(_answer(request, stdin.read(request["bytes"])))
        stdout.flush()


def _answer(request: dict, data: bytes) -> bytes:
    """A line of JSON, and pixels where there are some."""
    spec, box = PreprocessSpec.model_validate(request["spec"]), request["box"] and Box.model_validate(request["box"])
    try:
        pixels = decode(data, spec, ImageLimits.model_validate(request["limits"]), box)
    except ImageRejected as error:
        return json.dumps({"reason": error.reason, "detail": str(error)}).encode() + b"\n"
    return json.dumps({"size": spec.size}).encode() + b"\n" + pixels.tobytes()


if __name__ == "__main__":
    main()
