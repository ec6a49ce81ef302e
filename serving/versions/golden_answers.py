"""Golden answers: results recorded when a version was made, which every load must reproduce."""

import zipfile
from pathlib import Path

import numpy as np

from serving.contract.files import ContractError, atomic_write
from serving.contract.keys import shard_of
from serving.contract.manifest import CANDIDATES
from serving.index.merge import Neighbors
from serving.index.searcher import Searcher

TOP = 10
MAX_DIFFERENCE = 1e-4
ENGINE_SHARE = 0.95
"""Share of the golden products that another engine must find again: it may rearrange its index by itself, as Milvus does when it
merges segments. Their similarities must be the recorded ones all the same."""


def write_golden(path: Path, searcher: Searcher, vectors: np.ndarray) -> None:
    """Writes query `vectors` (n, d) float32 with the `keys` (n, 10) int64 and `similarity` (n, 10) float32 found for them.

    And `candidates`, the k that was searched for; older files lack it, and searched for ten.
    """
    found = _golden_results(searcher, vectors)
    keys = _keys(searcher, found.rows)
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, vectors=vectors, keys=keys, similarity=found.similarity, candidates=CANDIDATES)


def check_golden(path: Path, searcher: Searcher) -> None:
    """Raises ContractError unless the searcher reproduces the golden answers: similarities within 1e-4, keys up to ties.

    Better answers than those of older files, which searched for ten, are accepted.
    """
    golden = _read(path, searcher.dim)
    vectors, expected = golden["vectors"], golden["similarity"]
    if "candidates" not in golden:
        check_golden_over_shards(path, searcher)
        return
    found = _golden_results(searcher, vectors)
    if searcher.remote is not None:
        _check_golden_engine(found, _keys(searcher, found.rows), golden)
        return
    there, was = found.rows >= 0, golden["keys"] >= 0
    if not np.array_equal(there, was):
        raise ContractError("golden answers are not reproduced: another number of products is found")
    difference = float(np.abs(found.similarity[was] - expected[was]).max(initial=0.0))
    if not difference <= MAX_DIFFERENCE:
        raise ContractError(f"golden answers are not reproduced: similarities differ by {difference:.2g} (> {MAX_DIFFERENCE:g})")
    keys = _keys(searcher, found.rows)
    for row in range(len(keys)):
        moved = [
            k
            for k, s in zip(golden["keys"][row], expected[row], strict=True)
            if k not in keys[row] and s > expected[row].min() + MAX_DIFFERENCE
        ]
        if moved:
            raise ContractError(f"golden answers are not reproduced: query {row} no longer finds key {moved[0]}")


def _check_golden_engine(found: Neighbors, keys: np.ndarray, golden: dict[str, np.ndarray]) -> None:
    """Raises ContractError unless ENGINE_SHARE of the golden products are found again, with the similarities recorded for them."""
    there = again = 0
    for row, place in np.argwhere(golden["keys"] >= 0):
        was = np.flatnonzero(keys[row] == golden["keys"][row, place])
        there, again = there + 1, again + len(was)
        if len(was):
            difference = abs(float(found.similarity[row, was[0]] - golden["similarity"][row, place]))
            if not difference <= MAX_DIFFERENCE:
                raise ContractError(
                    f"golden answers are not reproduced: similarities differ by {difference:.2g} (> {MAX_DIFFERENCE:g})"
                )
    if again < ENGINE_SHARE * there:
        raise ContractError(f"golden answers are not reproduced: {again} of {there} products are found again")


def check_golden_over_shards(path: Path, searcher: Searcher) -> None:
    """Checks golden answers of shards searched separately: at every place the similarity is at least the recorded one.

    Separate shards each refine their own best estimates, a whole index only the best of all: they find the same or better.
    """
    golden = _read(path, searcher.dim)
    expected = golden["similarity"]
    found = _golden_results(searcher, golden["vectors"])
    worse = float((expected - found.similarity)[golden["keys"] >= 0].max(initial=0.0))
    if not worse <= MAX_DIFFERENCE:
        raise ContractError(f"golden answers are not reproduced: similarities are less by {worse:.2g} (> {MAX_DIFFERENCE:g})")


def check_golden_shard(path: Path, searcher: Searcher, shard: int) -> None:
    """Checks golden answers of one shard's searcher: finds every golden product of this shard, with its recorded similarity.

    A product that ten others of the shard now surpass counts as found: a separate shard refines more of its own.
    """
    golden = _read(path, searcher.dim)
    keys, expected = golden["keys"], golden["similarity"]
    mine = (keys >= 0) & (shard_of(keys, searcher.manifest.shards) == shard)
    found = _golden_results(searcher, golden["vectors"])
    found_keys = _keys(searcher, found.rows)
    for row, place in np.argwhere(mine):
        key, was = keys[row, place], expected[row, place]
        there = np.flatnonzero(found_keys[row] == key)
        if len(there):
            difference = abs(float(found.similarity[row, there[0]] - was))
            if not difference <= MAX_DIFFERENCE:
                where = f"shard {shard}, query {row}: the similarity of key {key}"
                raise ContractError(f"golden answers are not reproduced: {where} differs by {difference:.2g}")
        elif was > found.similarity[row, -1] + MAX_DIFFERENCE:
            raise ContractError(f"golden answers are not reproduced: shard {shard}, query {row} no longer finds key {key}")


def _read(path: Path, dim: int) -> dict[str, np.ndarray]:
    """Reads the arrays of golden answers. Raises ContractError for an invalid file or another dimension."""
    try:
        with path.open("rb") as stream:  # NumPy leaves a path open that is no such file
            golden = dict(np.load(stream, allow_pickle=False))
        vectors, keys, similarity = golden["vectors"], golden["keys"], golden["similarity"]
    except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        raise ContractError(f"{path.name}: not a file of golden answers (.npz with vectors, keys and similarity)") from None
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ContractError(f"golden answers have vectors of shape {vectors.shape}, the index has dimension {dim}")
    if not keys.shape == similarity.shape == (len(vectors), TOP):
        raise ContractError(
            f"golden answers have shape {keys.shape} and {similarity.shape}, where ({len(vectors)}, {TOP}) is expected"
        )
    if not np.isfinite(vectors).all():
        raise ContractError("golden answers were asked for vectors with NaN or infinity")
    return golden


def _golden_results(searcher: Searcher, vectors: np.ndarray) -> Neighbors:
    """The best ten of CANDIDATES: a search for ten could vary with tied estimates at the edge of what is refined."""
    found = searcher.search(vectors, CANDIDATES)
    return Neighbors(found.similarity[:, :TOP], found.rows[:, :TOP])


def _keys(searcher: Searcher, rows: np.ndarray) -> np.ndarray:
    return np.where(rows < 0, -1, searcher.features.key[np.maximum(rows, 0)])
