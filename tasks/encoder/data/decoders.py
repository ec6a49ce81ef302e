"""Worker processes that decode pictures a few training steps ahead; they import no torch, so they start fast."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType

import numpy as np

from serving.contract.child_environment import CLOUD, secrets_withheld
from serving.contract.preprocess import ImageRejected, PreprocessSpec, decode
from tasks.embed.images import read_image
from tasks.errors import TrainingError

AHEAD = 3
"""Steps whose pictures are asked for before they are needed: memory for so many batches."""


class Decoders:
    """`workers` decoding processes for pictures below `root`; a context manager. They exit with this process."""

    def __init__(self, root: str, spec: PreprocessSpec, workers: int) -> None:
        self.root, self.spec, self.workers = root, spec, workers
        self.waiting: dict[int, list[Future[np.ndarray]]] = {}
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_with_parent)
        with secrets_withheld(CLOUD):  # each of these starts a process
            for _ in range(workers):
                self.pool.submit(os.getpid)

    def __call__(self, step: int, uris_of: Callable[[int], list[str]]) -> np.ndarray:
        """Pictures (n, size, size, 3) uint8 of `uris_of(step)`; prefetches the next steps.

        Raises TrainingError when a picture cannot be read.
        """
        self.waiting = {s: futures for s, futures in self.waiting.items() if s >= step}
        for ahead in range(step, step + AHEAD):
            if ahead not in self.waiting:
                self.waiting[ahead] = self._submit(uris_of(ahead))
        return np.concatenate([f.result() for f in self.waiting.pop(step)])

    def _submit(self, uris: list[str]) -> list["Future[np.ndarray]"]:
        share = -(-len(uris) // self.workers)
        return [
            self.pool.submit(decode_many, uris[start : start + share], self.root, self.spec)
            for start in range(0, len(uris), share)
        ]

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pool.shutdown(cancel_futures=True)


def decode_many(uris: list[str], root: str, spec: PreprocessSpec) -> np.ndarray:
    """Pictures (n, size, size, 3) uint8. Raises TrainingError naming one that cannot be read."""
    pixels = np.empty((len(uris), spec.size, spec.size, 3), np.uint8)
    for i, uri in enumerate(uris):
        try:
            pixels[i] = decode(read_image(uri, root), spec)
        except ImageRejected as error:
            raise TrainingError(f"{uri} could be read before the training and cannot be now ({error}); start it again") from None
    return pixels


def _leave_with_parent() -> None:
    """Exits when the parent process is gone, so a killed training leaves no decoders behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
