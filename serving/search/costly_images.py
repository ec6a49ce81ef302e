"""Decodes costly images in a child process: at low priority, one at a time, and killed when its request's time is over.

A thread cannot be abandoned in the middle of a decoder, and one that crashes takes the replica down. What is costly says
serving/contract/decode_cost.py; the other photos are decoded where they are searched with.
"""

import json
import os
import subprocess
import sys
import threading

import numpy as np

from serving.contract.box import Box
from serving.contract.child_environment import child_environment
from serving.contract.image_limits import ImageLimits, ImageRejected
from serving.contract.preprocess import PreprocessSpec
from serving.telemetry.timing import Deadline

MAX_COST = 64_000_000
"""About 130 ms: photos of cameras, progressive ones up to 12 megapixels, and a phone's screenshot (a PNG of 3 megapixels) cost less.
What costs more is decoded here."""
COMMAND = (sys.executable, "-m", "serving.search.costly_images_child")


class ChildGone(Exception):
    """The child ended before it answered."""


class CostlyImages:
    """The child process, started by the first costly image; it ends itself when it is idle, or this process is gone.

    `decode` is called by one thread at a time.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits.model_copy(update={"max_cost": float("inf")})
        self.child: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes, spec: PreprocessSpec, box: Box | None, deadline: Deadline) -> np.ndarray:
        """Pixels (size, size, 3) uint8, as serving.contract.preprocess.decode gives them.

        Raises ImageRejected as that does, also for an image over which the child died; DeadlinePassed.
        """
        deadline.check("decode")
        request = json.dumps({
            "spec": spec.model_dump(), "box": box and box.model_dump(), "bytes": len(data),
            "limits": self.limits.model_dump(exclude={"max_cost"}),
        }).encode()  # fmt: skip
        used = self.child
        try:
            return self._ask(request + b"\n" + data, deadline)
        except ChildGone:
            if used is None:
                raise ImageRejected("truncated", "the image cannot be decoded") from None
        return self.decode(data, spec, box, deadline)  # one that was there before may have ended itself, being idle, meanwhile

    def _ask(self, message: bytes, deadline: Deadline) -> np.ndarray:
        """The answer of the child. Raises ChildGone, and what `decode` raises; no child is left after the first of these."""
        child = self._running()
        ending = threading.Timer(max(0.0, deadline.left_s()), child.kill)
        ending.start()
        try:
            return _exchange(child, message)
        except (OSError, ValueError, TypeError):  # it was killed, crashed or ended itself in the middle
            self.close()
            deadline.check("decode")
            raise ChildGone from None
        finally:
            ending.cancel()

    def close(self) -> None:
        """Kills the child."""
        child, self.child = self.child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _running(self) -> subprocess.Popen[bytes]:
        if self.child is None or self.child.poll() is not None:
            self.close()
            environ = child_environment(os.environ) | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
            self.child = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
            )  # libraries print to standard error
        return self.child


def _exchange(child: subprocess.Popen[bytes], message: bytes) -> np.ndarray:
    """One request and its answer. Raises ImageRejected, and others where the child does not answer whole."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(message)
    child.stdin.flush()
    answer = json.loads(child.stdout.readline())
    if "reason" in answer:
        raise ImageRejected(answer["reason"], answer["detail"])
    size = answer["size"]
    return np.frombuffer(child.stdout.read(size * size * 3), np.uint8).reshape(size, size, 3)
