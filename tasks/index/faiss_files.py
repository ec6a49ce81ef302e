"""Writes the base segment of a shard as a FAISS index."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.files import FileRef, describe
from serving.contract.segments import write_index
from serving.index.faiss_engine import omp_threads
from tasks.index.coarse import fast_adding
from tasks.index.families import FAMILIES
from tasks.index.graph_reordering import group
from tasks.index.quantizer_codes import code_adder
from tasks.index.template import Template, empty_index


class FaissShard:
    """Takes the vectors of a shard, in order, into a copy of the template's index. Deterministic to the byte."""

    digest = ""

    def __init__(self, template: Template) -> None:
        self.template, self.index = template, empty_index(template)

    @contextmanager
    def adding(self) -> Iterator[Any]:
        """A function that adds vectors. A graph's links depend on the order in which threads insert: one builds it."""
        threads = 1 if FAMILIES[self.template.family].sequential else _all_threads()
        with omp_threads(threads), code_adder(self.index) as add, fast_adding(self.index):
            yield add

    def rearranged(self, label: str) -> np.ndarray | None:
        """The order that a graph's rows were brought into; None where they are as they were added."""
        return group(self.index, label)

    def write(self, folder: Path, name: str) -> FileRef:
        path = folder / f"{name}.faiss"
        write_index(path, self.index)
        return describe(path, path.name)


def _all_threads() -> int:
    import faiss

    return faiss.omp_get_max_threads()
