"""A version as a gateway holds it: the encoder, the features of every row, and no index: candidates come from the shards.

Features live here (docs/decisions/0050): a shard answers with rows and similarities alone, and ranking is the very code of a
whole replica over the very same columns.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.contract.files import ContractError, FileRef, verify
from serving.contract.manifest import IndexManifest, Scalar
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from serving.contract.segments import read_rows
from serving.features import Features
from serving.filters import Filter, check
from serving.golden import check_apart
from serving.queries import QueryError
from serving.release import Release
from serving.searcher import Found, OpenSegment, Searcher, alive_rows, features_of, merge, ordered
from serving.shards.asking import Asking, Refusal
from serving.shards.fleet import Fleet
from serving.shards.part import offsets
from serving.shards.wire import SEARCH, VECTORS, pack, unpack
from serving.source import VersionSource

log = logging.getLogger(__name__)

EXACT_S = 30.0
"""What comparing every row may take: ten million take a second or more."""


class RemoteSearcher(Searcher):
    """The searcher of a version whose index is in shard processes; its features and tombstones are here."""

    def __init__(
        self, manifest: IndexManifest, segments: list[OpenSegment], features: Features, version: str, asking: Asking
    ) -> None:
        super().__init__(manifest, segments, features)
        self.version, self.digest, self.asking = version, manifest.digest(), asking
        self.wanted = f"{version}|{self.digest}"
        self.shards = list(range(manifest.shards))
        self.starts = offsets(manifest)

    @classmethod
    def over(cls, version: str, manifest: IndexManifest, locate: Callable[[FileRef], Path], asking: Asking) -> "RemoteSearcher":
        """Opens the row tables and tombstones of every segment; `locate` gives a verified path. Raises ContractError."""
        segments: list[OpenSegment] = []
        tables: list[pa.Table] = []
        start = 0
        for segment in ordered(manifest.segments):
            if segment.index is None:
                continue
            table = read_rows(locate(segment.table))
            if len(table) != segment.rows:
                raise ContractError(f"{segment.table.path}: {len(table)} rows, where the manifest says {segment.rows}")
            alive = alive_rows(segment, table["key"].to_numpy(), manifest.segments, locate)
            segments.append(OpenSegment(None, start, segment.rows, alive))
            tables.append(table)
            start += segment.rows
        return cls(manifest, segments, features_of(manifest, tables), version, asking)

    def search(self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None, params: dict[str, Scalar] | None = None) -> Found:
        """The k nearest rows of all shards. Raises ShardsAway; ValueError for masks and parameters, which do not travel."""
        if allowed is not None or params is not None:
            raise ValueError("a gateway sends shards filters, not masks or parameters")
        return self._whole(self.ask(xq, k, measure="index"))

    def exact(self, xq: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        if allowed is not None:
            raise ValueError("a gateway sends shards filters, not masks")
        return self._whole(self.ask(xq, k, measure="exact"))

    def ask(self, xq: np.ndarray, k: int, wanted: Filter | None = None, latest: float | None = None, measure: str = "") -> Found:
        """The k nearest rows of all shards that answer; `missing` says how many did not. Raises ShardsAway when none did.

        `measure`: "index" or "exact" to measure by the one or the other, whatever the version's rules require.
        """
        xq = self._checked(xq, None)
        header = {
            "version": self.version,
            "digest": self.digest,
            "k": k,
            "filter": wanted.root if wanted else None,
            "measure": measure,
        }
        shape = (len(xq), k)
        parts = self._asked(SEARCH, self.shards, header, xq, (shape, shape), latest, EXACT_S if measure else 0.0)
        if not parts:
            raise ShardsAway("no shard answered; try again in a second")
        found = merge([Found(p[0], p[1]) for _, p in sorted(parts.items())], k)
        return Found(found.similarity, found.rows, len(self.shards) - len(parts))

    def vector(self, row: int, latest: float | None = None) -> np.ndarray:
        """The stored vector (d,) float32 of a row, from its shard. Raises ShardsAway."""
        shard = max(s for s, start in self.starts.items() if start <= row)
        header = {"version": self.version, "digest": self.digest}
        parts = self._asked(VECTORS, [shard], header, np.array([row], np.int64), ((1, self.dim),), latest)
        if not parts:
            raise ShardsAway("the shard that holds this product does not answer; try again in a second")
        return parts[shard][0][0]

    def _whole(self, found: Found) -> Found:
        """For those that measure: what only some shards answered is no measurement. Raises ShardsAway."""
        if found.missing:
            raise ShardsAway(f"{found.missing} of {len(self.shards)} shards did not answer")
        return found

    def _asked(
        self,
        path: str,
        shards: list[int],
        header: dict,
        array: np.ndarray,
        shapes: tuple[tuple[int, ...], ...],
        latest: float | None,
        slow_s: float = 0.0,
    ) -> dict[int, list[np.ndarray]]:
        """The arrays that shards answer with. What is not of this version, or not of `shapes`, counts as no answer."""

        def question(shard: int, left_s: float) -> bytes:
            return pack(header | {"shard": shard, "left_ms": round(1e3 * left_s, 1)}, array)

        def read(body: bytes) -> list[np.ndarray]:
            told, arrays = unpack(body)
            if told.get("digest") != self.digest:
                raise ValueError(f"it answered for {told.get('digest')}, asked was {self.digest}")
            if tuple(a.shape for a in arrays) != shapes:
                raise ValueError(f"it answered with arrays of {[a.shape for a in arrays]}, asked was {list(shapes)}")
            return arrays

        try:
            return self.asking.ask(path, self.wanted, shards, question, read, latest, slow_s)
        except Refusal as error:
            raise ValueError(str(error)) from None


class ShardsAway(QueryError):
    """No shard, or not the one that matters, could answer."""

    reason = "shards_away"
    headers = {"Retry-After": "1"}

    def __init__(self, message: str) -> None:
        super().__init__(message, 503)


class GatewayRelease(Release):
    """A release whose candidates come from shards."""

    searcher: RemoteSearcher

    def vector(self, row: int, latest: float | None = None) -> np.ndarray:
        return self.searcher.vector(row, latest)

    def retrieve(self, xq: np.ndarray, candidates: int, wanted: Filter | None = None, latest: float | None = None) -> Found:
        if wanted is not None:
            check(self.searcher.features, wanted)  # here all columns are known; a shard may lack one that others have
        return self.searcher.ask(xq, candidates, wanted, latest)

    def warm(self, rounds: int = 3) -> None:
        """Also where some shards are away: they are warmed by themselves."""
        try:
            super().warm(rounds)
        except ShardsAway as error:
            log.warning("version %s is not warm: %s", self.version, error)


class GatewayVersions:
    """Opens versions for a gateway: ready once every shard holds them and together they reproduce the golden answers.

    A gateway that serves nothing yet takes a version whose shards are not all there after `patience_s`.
    """

    def __init__(
        self, source: VersionSource, fleet: Fleet, asking: Asking, threads: int = 1, patience_s: float = 10.0,
        runtime: Runtime = ONNXRUNTIME, encode_most: int = 1, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.source, self.fleet, self.asking, self.threads = source, fleet, asking, threads
        self.patience_s, self.runtime, self.encode_most, self.clock = patience_s, runtime, encode_most, clock
        self.since: dict[str, float] = {}

    def open(self, version: str) -> GatewayRelease:
        manifest = self.source.manifest(version)

        def locate(ref: FileRef) -> Path:
            return verify(self.source.fetch(ref), ref)

        searcher = RemoteSearcher.over(version, manifest, locate, self.asking)
        locate(manifest.golden)
        encoder = self.source.encoder(manifest)
        opened = GatewayRelease.over(searcher, version, manifest, encoder, self.threads, self.runtime)
        opened.encode_most = self.encode_most
        return opened

    def lacks(self, opened: Release, first: bool) -> str:
        manifest, searcher = opened.manifest, opened.searcher
        assert isinstance(searcher, RemoteSearcher)
        lacking = self.fleet.lacks(opened.version, searcher.digest, manifest.shards)
        for shard, _ in lacking:
            if why := self.fleet.failed(shard, opened.version):
                raise ContractError(f"shard {shard} could not load version {opened.version}: {why}")
        began = self.since.setdefault(searcher.wanted, self.clock())
        if lacking and first and len(lacking) < manifest.shards and self.clock() - began > self.patience_s:
            log.warning("version %s goes live without %d of %d shards", opened.version, len(lacking), manifest.shards)
            lacking = []
        elif not lacking:
            try:
                check_apart(verify(self.source.fetch(manifest.golden), manifest.golden), searcher)
            except ShardsAway as error:
                return str(error)
        if not lacking:
            self.since.pop(searcher.wanted, None)
            return ""
        return f"{lacking[0][1]} ({manifest.shards - len(lacking)} of {manifest.shards} shards hold version {opened.version})"

    def hinders(self, ready: Release) -> str:
        """A shard that is away altogether would be missing from the old version too, so it does not hold a flip up."""
        lacking = self.fleet.lacks(ready.version, ready.manifest.digest(), ready.manifest.shards)
        return next((why for shard, why in lacking if self.fleet.answering(shard)), "")
