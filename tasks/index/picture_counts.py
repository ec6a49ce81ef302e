"""How many pictures of products a version has, usable and not: what an hourly version's counts are made of."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from serving.contract.files import FileRef
from serving.contract.keys import shard_of
from serving.contract.manifest import IndexManifest, Segment
from serving.contract.provenance import EmbeddingCommit
from serving.contract.segments import POSITION, read_pictures, read_rows
from tasks import storage
from tasks.embed.quarantine import quarantine_uri
from tasks.index.vectors import shard_uri


def live_pictures(manifest: IndexManifest, keys: np.ndarray, locate: Callable[[FileRef], Path]) -> tuple[int, int]:
    """How many vectors of these products (n,) int64 no tombstone hides, and how many of them are of titles. Reads the keys of their
    shards' segments."""
    count = titles = 0
    for shard in np.unique(shard_of(keys, manifest.shards)):
        mine = [s for s in manifest.segments if s.shard == shard]
        stones = [(s.sequence, read_rows(locate(s.table))["key"].to_numpy()) for s in mine if s.kind == "tombstones"]
        for segment in (s for s in mine if s.holds_rows):
            hidden = [k for sequence, k in stones if sequence > segment.sequence]
            shown = np.setdiff1d(keys, np.concatenate(hidden)) if hidden else keys
            products, position = _products(segment, locate)
            there = np.isin(products, shown)
            count, titles = count + int(there.sum()), titles + int((position[there] < 0).sum())
    return count, titles


def quarantined_pictures(commits: Sequence[EmbeddingCommit], keys: np.ndarray) -> int:
    """How many pictures of these products (n,) int64 could not be used by the run that looked at them last.

    `commits` are a version's, the base's first; their quarantine and vectors are read from the store, where they are still kept.
    """
    count, left = 0, np.unique(keys)
    for number, commit in reversed(list(enumerate(commits))):
        folder, _, run = commit.uri.rpartition("/")
        uri = quarantine_uri(folder.rpartition("/")[0], run)
        bad = storage.read_table(uri, ["key"])["key"].to_numpy() if storage.exists(uri) else np.zeros(0, np.int64)
        count += int(np.isin(bad, left).sum())
        if number:  # what none of the later ones looked at is as the base has it
            left = np.setdiff1d(left, np.concatenate([bad, *_embedded(commit.uri)]))
    return count


def _products(segment: Segment, locate: Callable[[FileRef], Path]) -> tuple[np.ndarray, np.ndarray]:
    """The product of each vector of a segment, and its position."""
    if segment.pictures is None:
        keys = read_rows(locate(segment.table))["key"].to_numpy()
        return keys, np.zeros(len(keys), np.int16)
    table = read_pictures(locate(segment.pictures.table), segment.pictures.rows)
    return table["product"].to_numpy(), table[POSITION].to_numpy()


def _embedded(vectors_uri: str) -> list[np.ndarray]:
    """Keys of the products that a run has vectors of, by part."""
    parts = storage.list_files(vectors_uri, ".parquet", recursive=True)
    return [storage.read_table(part, ["key"])["key"].to_numpy() for part in parts if shard_uri(vectors_uri, 0)[:-1] in part]
