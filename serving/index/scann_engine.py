"""Engine over one ScaNN index: a tree of partitions, codes that err across (anisotropic hashing), and reordering by the exact vectors.

Its file is an uncompressed tar of what ScaNN writes, so that a segment has one file with one checksum; stored vectors are read from
it in place. ScaNN takes no row masks: more is fetched, and what a mask excludes is dropped (serving/index/unmasked.py).
"""

import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from serving.contract.addresses import error_line
from serving.contract.files import ContractError
from serving.contract.manifest import Scalar
from serving.index.collection import compare_fetched
from serving.index.engine import Mask
from serving.index.faiss_engine import NPROBE, k_factor
from serving.index.merge import Neighbors, empty
from serving.index.unmasked import best_allowed, over_fetch

SUFFIX = ".scann"
VECTORS, TREE = "dataset.npy", "serialized_partitioner.pb"
"""Names that ScaNN gives to the exact vectors and to its tree; without a tree every row is compared."""


class ScannEngine:
    """Engine over `stored` vectors (rows, d) float32 and ScaNN's searcher over the same; None where there are no rows.

    Of its search parameters `nprobe` is the number of leaves that are scanned, and `k_factor` the candidates per result that are
    compared exactly.
    """

    def __init__(self, searcher: Any, stored: np.ndarray, tree: bool) -> None:
        self.searcher, self.stored, self.tree = searcher, stored, tree
        self.rows, self.dim = stored.shape

    def search(self, xq: np.ndarray, k: int, mask: Mask | None, params: dict[str, Scalar], effort: int = 1) -> Neighbors:
        if xq.shape[1] != self.dim:
            raise ValueError(f"queries of dimension {xq.shape[1]}, where the index has {self.dim}")
        wanted = min(k if mask is None else over_fetch(self.rows, k, mask.count, effort), self.rows)
        compared = min(max(int(wanted * k_factor(params)), wanted), self.rows)
        leaves = int(params.get("nprobe") or NPROBE) * effort if self.tree else None
        rows, similarity = self.searcher.search_batched(xq, wanted, compared, leaves)
        missing = np.isnan(similarity)  # leaves with fewer rows
        found = Neighbors(np.where(missing, -np.inf, similarity).astype(np.float32), np.where(missing, -1, rows.astype(np.int64)))
        return best_allowed(found, k, mask)

    def nearest(self, xq: np.ndarray, positions: np.ndarray, k: int) -> Neighbors:
        if not len(positions):
            return empty(len(xq), 0)
        return compare_fetched(self.vectors, xq, positions, min(k, len(positions)))

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Stored vectors (n, d) float32 at these positions."""
        return np.asarray(self.stored[positions])


def open_scann(path: Path, dim: int, rows: int) -> ScannEngine:
    """Opens a ScaNN file. It is unpacked into the system's folder for temporary files while ScaNN reads it.

    Raises ContractError where it is none, has another dimension or number of rows, or ScaNN is not installed.
    """
    try:
        with tarfile.open(path, "r:") as tar, tempfile.TemporaryDirectory(prefix="vitrine-scann-") as folder:
            stored = _in_place(path, tar)
            if stored.shape != (rows, dim):
                raise ContractError(
                    f"{path.name}: {stored.shape[0]} vectors of dimension {stored.shape[1]}, where the manifest says {rows} of {dim}"
                )
            tar.extractall(folder, filter="data")
            return ScannEngine(_load(folder) if rows else None, stored, TREE in tar.getnames())
    except ModuleNotFoundError as error:
        raise ContractError(f"{path.name}: it needs the package {error.name}: install vitrine[scann]") from None
    except (tarfile.TarError, KeyError, ValueError, RuntimeError) as error:
        raise ContractError(f"{path.name}: ScaNN cannot read it: {error_line(error)}") from None
    except OSError as error:
        raise ContractError(f"{path.name}: it cannot be unpacked below {tempfile.gettempdir()} (TMPDIR): {error}") from None


def _load(folder: str) -> Any:
    from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind.load_searcher(folder)


def _in_place(path: Path, tar: tarfile.TarFile) -> np.ndarray:
    """The exact vectors (rows, d) within the tar, memory-mapped."""
    with path.open("rb") as file:
        file.seek(tar.getmember(VECTORS).offset_data)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    return np.memmap(path, dtype, "r", start, shape) if shape[0] else np.zeros(shape, dtype)
