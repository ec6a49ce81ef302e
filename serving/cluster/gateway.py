"""A gateway's release: the encoder and the features of every row, but no index; candidates come from shard processes.

Features live here (docs/decisions/0050): a shard returns rows and similarities only, and ranking runs the same code over the same
columns as a whole replica.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.cluster.client import InvalidShardRequest, ShardClient
from serving.cluster.fleet import Fleet
from serving.cluster.shard_set import offsets
from serving.cluster.wire import SEARCH, VECTORS, pack, unpack
from serving.contract.files import ContractError, FileRef, open_verified
from serving.contract.manifest import IndexManifest, Scalar
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from serving.contract.segments import read_rows
from serving.index.searcher import Neighbors, OpenSegment, Searcher, alive_rows, features_of, merge, ordered
from serving.invalid_request import InvalidRequest
from serving.ranking.features import Features
from serving.ranking.filters import Filter, check_filter
from serving.search.query import QueryError
from serving.versions.encoder_trial import EncoderTrial
from serving.versions.golden_answers import check_golden_over_shards
from serving.versions.release import Release
from serving.versions.version_source import VersionSource

log = logging.getLogger(__name__)

EXACT_S = 30.0
"""Timeout of exact searches: over ten million rows they take a second or more."""


class RemoteSearcher(Searcher):
    """Searcher of a version whose index is in shard processes; features and tombstones are local."""

    def __init__(
        self, manifest: IndexManifest, segments: list[OpenSegment], features: Features, version: str, client: ShardClient
    ) -> None:
        super().__init__(manifest, segments, features)
        self.version, self.digest, self.client = version, manifest.digest(), client
        self.version_key = f"{version}|{self.digest}"
        self.shards = list(range(manifest.shards))
        self.starts = offsets(manifest)

    @classmethod
    def connect(
        cls, version: str, manifest: IndexManifest, locate: Callable[[FileRef], Path], client: ShardClient
    ) -> "RemoteSearcher":
        """Opens the row tables and tombstones of every segment; `locate` gives a verified path. Raises ContractError."""
        segments: list[OpenSegment] = []
        tables: list[pa.Table] = []
        start = 0
        for segment in ordered(manifest.segments):
            if not segment.holds_rows:
                continue
            table = read_rows(locate(segment.table))
            if len(table) != segment.rows:
                raise ContractError(f"{segment.table.path}: {len(table)} rows, where the manifest says {segment.rows}")
            alive = alive_rows(segment, table["key"].to_numpy(), manifest.segments, locate)
            segments.append(OpenSegment(None, start, segment.rows, alive))
            tables.append(table)
            start += segment.rows
        return cls(manifest, segments, features_of(manifest, tables), version, client)

    def search(
        self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None, params: dict[str, Scalar] | None = None,
        words: bool = False,
    ) -> Neighbors:  # fmt: skip
        """k nearest rows over all shards. Raises ShardsUnavailable; ValueError for masks and parameters, which cannot be sent."""
        if allowed is not None or params is not None:
            raise ValueError("a gateway sends shards filters, not masks or parameters")
        return self._complete(self.search_shards(xq, k, measure="index", words=words))

    def exact(self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None, words: bool = False) -> Neighbors:
        if allowed is not None:
            raise ValueError("a gateway sends shards filters, not masks")
        return self._complete(self.search_shards(xq, k, measure="exact", words=words))

    def search_shards(
        self, xq: np.ndarray, k: int, query_filter: Filter | None = None, latest: float | None = None, measure: str = "",
        words: bool = False,
    ) -> Neighbors:  # fmt: skip
        """k nearest rows over the shards that answer; `missing` counts the others. Raises ShardsUnavailable when none answers.

        `measure`: "index" or "exact" for measurements by either search, ignoring the version's required filter.
        """
        xq = self._checked(xq, None)
        header = {
            "version": self.version,
            "digest": self.digest,
            "k": k,
            "filter": query_filter.root if query_filter else None,
            "measure": measure,
            "words": words,
        }
        shapes = dict.fromkeys(("similarity", "row", *(["picture"] if self.manifest.several_pictures else [])), (len(xq), k))
        parts = self._request(SEARCH, self.shards, header, {"query": xq}, shapes, latest, EXACT_S if measure else 0.0)
        if not parts:
            raise ShardsUnavailable("no shard answered; try again in a second")
        found = merge([Neighbors(p["similarity"], p["row"], pictures=p.get("picture")) for _, p in sorted(parts.items())], k)
        return replace(found, missing=len(self.shards) - len(parts))

    def vector(self, row: int, latest: float | None = None) -> np.ndarray:
        """The stored vector (d,) float32 of a row, from its shard. Raises ShardsUnavailable."""
        shard = max(s for s, start in self.starts.items() if start <= row)
        header = {"version": self.version, "digest": self.digest}
        parts = self._request(VECTORS, [shard], header, {"row": np.array([row], np.int64)}, {"vector": (1, self.dim)}, latest)
        if not parts:
            raise ShardsUnavailable("the shard that holds this product does not answer; try again in a second")
        return parts[shard]["vector"][0]

    def _complete(self, found: Neighbors) -> Neighbors:
        """The result itself, for measurements, which need every shard. Raises ShardsUnavailable where one is missing."""
        if found.missing:
            raise ShardsUnavailable(f"{found.missing} of {len(self.shards)} shards did not answer")
        return found

    def _request(
        self,
        path: str,
        shards: list[int],
        header: dict,
        arrays: dict[str, np.ndarray],
        shapes: Mapping[str, tuple[int, ...]],
        latest: float | None,
        slow_s: float = 0.0,
    ) -> dict[int, dict[str, np.ndarray]]:
        """The arrays of each shard's answer. An answer of another version, of other `shapes` or of absurd numbers counts as none."""

        def request(shard: int, left_s: float) -> bytes:
            return pack(header | {"shard": shard, "left_ms": round(1e3 * left_s, 1)}, **arrays)

        def read(body: bytes) -> dict[str, np.ndarray]:
            answer, columns = unpack(body)
            if answer.get("digest") != self.digest:
                raise ValueError(f"it answered for {answer.get('digest')}, asked was {self.digest}")
            if (got := {name: a.shape for name, a in columns.items()}) != shapes:
                raise ValueError(f"it answered with arrays of {got}, asked was {shapes}")
            _check_numbers(columns, self.rows)
            return columns

        try:
            return self.client.fan_out(path, self.version_key, shards, request, read, latest, slow_s)
        except InvalidShardRequest as error:
            raise InvalidRequest(str(error)) from None


def _check_numbers(columns: Mapping[str, np.ndarray], rows: int) -> None:
    """Raises ValueError for an answer that no shard of a version with so many rows can give: it would be read as other products."""
    for name, values in columns.items():
        if values.dtype.kind != ("i" if name in ("row", "picture") else "f"):
            raise ValueError(f"its {name} are {values.dtype}")
        if name == "row" and values.size and not (values.min() >= -1 and values.max() < rows):
            raise ValueError(f"it answered with rows {values.min()}..{values.max()}, where the version has {rows}")
        if name == "picture" and values.size and not (values.min() >= -1 and values.max() < 2**15):
            raise ValueError(f"it answered with pictures {values.min()}..{values.max()}")
        if values.dtype.kind == "f" and not (values < np.inf).all():  # -inf beside row -1
            raise ValueError(f"its {name} are not all numbers")


class ShardsUnavailable(QueryError):
    """No shard, or not the one needed, answered."""

    reason = "shards_away"
    headers = {"Retry-After": "1"}

    def __init__(self, message: str) -> None:
        super().__init__(message, 503)


class GatewayRelease(Release):
    """A release whose candidates come from shards."""

    searcher: RemoteSearcher

    def vector(self, row: int, latest: float | None = None) -> np.ndarray:
        return self.searcher.vector(row, latest)

    def retrieve(
        self, xq: np.ndarray, candidates: int, query_filter: Filter | None = None, latest: float | None = None,
        words: bool = False,
    ) -> Neighbors:  # fmt: skip
        if query_filter is not None:
            check_filter(
                self.searcher.features, query_filter
            )  # here all columns are known; a shard may lack one that others have
        return self.searcher.search_shards(xq, candidates, query_filter, latest, words=words)

    def warm(self, rounds: int = 3) -> None:
        """Warms the encoder and the shards; missing shards are only logged, since they warm themselves."""
        try:
            super().warm(rounds)
        except ShardsUnavailable as error:
            log.warning("version %s is not warm: %s", self.version, error)


class GatewayOpener:
    """Opens versions for a gateway: ready once every shard holds them and together they reproduce the golden answers.

    After `patience_s`, a gateway without a live version serves one some of whose shards are missing.
    """

    def __init__(
        self, source: VersionSource, fleet: Fleet, client: ShardClient, threads: int = 1, patience_s: float = 10.0,
        runtime: Runtime = ONNXRUNTIME, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.source, self.fleet, self.client, self.threads = source, fleet, client, threads
        self.patience_s, self.runtime, self.clock = patience_s, runtime, clock
        self.since: dict[str, float] = {}
        self.trial = EncoderTrial()

    def open(self, version: str) -> GatewayRelease:
        manifest = self.source.manifest(version)

        def locate(ref: FileRef) -> Path:
            return open_verified(self.source.fetch(ref), ref)

        searcher = RemoteSearcher.connect(version, manifest, locate, self.client)
        locate(manifest.golden)
        encoder = self.source.encoder(manifest)
        return GatewayRelease.from_searcher(searcher, version, manifest, encoder, self.threads, self.runtime, self.trial)

    def pending_reason(self, opened: Release, first: bool) -> str:
        manifest, searcher = opened.manifest, opened.searcher
        assert isinstance(searcher, RemoteSearcher)
        missing = self.fleet.missing_shards(opened.version, searcher.digest, manifest.shards)
        for shard, _ in missing:
            if why := self.fleet.load_failure(shard, opened.version):
                raise ContractError(f"shard {shard} could not load version {opened.version}: {why}")
        began = self.since.setdefault(searcher.version_key, self.clock())
        if missing and first and len(missing) < manifest.shards and self.clock() - began > self.patience_s:
            log.warning("version %s goes live without %d of %d shards", opened.version, len(missing), manifest.shards)
            missing = []
        elif not missing:
            try:
                check_golden_over_shards(open_verified(self.source.fetch(manifest.golden), manifest.golden), searcher)
            except ShardsUnavailable as error:
                return str(error)
        if not missing:
            self.since.pop(searcher.version_key, None)
            return ""
        return f"{missing[0][1]} ({manifest.shards - len(missing)} of {manifest.shards} shards hold version {opened.version})"

    def flip_blocker(self, ready: Release) -> str:
        """A shard without any process up would be missing from the old version too, so it does not block a flip."""
        missing = self.fleet.missing_shards(ready.version, ready.manifest.digest(), ready.manifest.shards)
        return next((why for shard, why in missing if self.fleet.any_up(shard)), "")
