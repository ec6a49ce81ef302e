"""The shards of an index version that one process holds: their searchers, without encoder and ranker."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from serving.contract.files import ContractError, FileRef, open_verified
from serving.contract.manifest import IndexManifest
from serving.index.searcher import Neighbors, Searcher, ordered
from serving.ranking.filters import Filter, filter_mask
from serving.ranking.ranker import RankerConfig
from serving.versions.golden_answers import check_golden_shard
from serving.versions.version_source import VersionSource


def offsets(manifest: IndexManifest) -> dict[int, int]:
    """The handle of each shard's first row in the whole version, by shard."""
    found: dict[int, int] = {}
    start = 0
    for segment in ordered(manifest.segments):
        if segment.holds_rows:
            found.setdefault(segment.shard, start)
            start += segment.rows
    return found


class ShardSearcher:
    """Searcher of one shard that returns the whole version's handles."""

    def __init__(self, searcher: Searcher, start: int, config: RankerConfig) -> None:
        self.searcher, self.start = searcher, start
        searcher.features.lenient = True
        require = config.rules.require
        self.required = filter_mask(searcher.features, require) if require else None

    def search(self, xq: np.ndarray, k: int, query_filter: Filter | None, words: bool = False) -> Neighbors:
        """k nearest rows of unit queries xq (nq, d) that pass the filter and the required filter, as in a whole version."""
        mask = self.required
        if query_filter is not None:
            chosen = filter_mask(self.searcher.features, query_filter)
            mask = chosen if mask is None else chosen & mask
        return self._to_handles(self.searcher.search(xq, k, mask, words=words))

    def measure(self, xq: np.ndarray, k: int, exact: bool, words: bool = False) -> Neighbors:
        """k nearest live rows without the required filter, by the index or exactly: for measurements."""
        search = self.searcher.exact if exact else self.searcher.search
        return self._to_handles(search(xq, k, words=words))

    def _to_handles(self, found: Neighbors) -> Neighbors:
        return replace(found, rows=np.where(found.rows < 0, -1, found.rows + self.start))

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Stored vectors (n, d) float32 of handles (n,). Raises ValueError for rows of other shards: a gateway's fault."""
        local = rows - self.start
        if len(local) and not (local.min() >= 0 and local.max() < self.searcher.rows):
            raise ValueError(f"rows {rows.min()}..{rows.max()} are not of this shard")
        return np.stack([self.searcher.vector(int(row)) for row in local])


class ShardSet:
    """Verified shards of an index version; `digest` names the version's content."""

    def __init__(self, version: str, manifest: IndexManifest, shards: dict[int, ShardSearcher]) -> None:
        self.version, self.manifest, self.shards = version, manifest, shards
        self.digest = manifest.digest()

    def away(self) -> str:
        """A shard waits for no other system."""
        return ""

    @classmethod
    def open(
        cls, version: str, manifest: IndexManifest, locate: Callable[[FileRef], Path], shards: list[int], threads: int = 1
    ) -> "ShardSet":
        """Opens the segments of `shards` and no others. Raises ContractError naming what is wrong."""
        strange = [s for s in shards if s not in range(manifest.shards)]
        if strange:
            raise ContractError(
                f"index {manifest.id} has {manifest.shards} shards; this process is told to hold shard {strange[0]} (VITRINE_SHARDS)"
            )
        config = RankerConfig.model_validate(manifest.ranker)
        starts = offsets(manifest)
        golden = open_verified(locate(manifest.golden), manifest.golden)
        held = {}
        for shard in shards:
            searcher = Searcher.open(manifest, lambda ref: open_verified(locate(ref), ref), threads, shard)
            rows = sum(s.rows for s in manifest.segments if s.shard == shard and s.holds_rows)
            if searcher.rows != rows:
                raise ContractError(
                    f"index {manifest.id}: shard {shard} has {searcher.rows} rows, where the manifest says {rows}"
                )
            check_golden_shard(golden, searcher, shard)
            held[shard] = ShardSearcher(searcher, starts[shard], config)
        return cls(version, manifest, held)

    @property
    def products(self) -> int:
        return sum(s.searcher.live_rows for s in self.shards.values())

    def warm(self, rounds: int = 3) -> None:
        """Runs a few random queries, so that the first request does not pay for page faults."""
        rng = np.random.default_rng(0)
        for shard in self.shards.values():
            xq = rng.standard_normal((rounds, shard.searcher.dim)).astype(np.float32)
            for x in xq / np.linalg.norm(xq, axis=1, keepdims=True):
                shard.search(x[None], 500, None)


class ShardSetOpener:
    """Opens this process's shards of a version; ready at once."""

    def __init__(self, source: VersionSource, shards: list[int], threads: int = 1) -> None:
        self.source, self.shards, self.threads = source, shards, threads

    def open(self, version: str) -> ShardSet:
        return ShardSet.open(version, self.source.manifest(version), self.source.fetch, self.shards, self.threads)

    def pending_reason(self, opened: ShardSet, first: bool) -> str:
        return ""

    def flip_blocker(self, ready: ShardSet) -> str:
        return ""
