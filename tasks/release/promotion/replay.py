"""Queries replayed against two versions: sampled real ones, topped up with held-out photos or the views that stand in for them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from serving.contract.preprocess import ImageRejected
from serving.versions.release import EncodedQuery, Release
from tasks.errors import SettingsError
from tasks.release.promotion.serving_replicas import Replica, SampledQuery, for_each_replica

log = logging.getLogger(__name__)

TOP = 20
LEAST = 20
"""With fewer sampled queries than this, held-out photos, or views, are replayed as well."""


@dataclass(frozen=True)
class ReplayQueries:
    """Query vectors for each version: `vectors` (n, d) for the candidate, `live_vectors` (n, d') for the live version.

    The two differ only where the encoder changed. `live_vectors` is None when nothing is live. `origin` says where they come from.
    """

    vectors: np.ndarray
    live_vectors: np.ndarray | None
    origin: str

    def __len__(self) -> int:
        return len(self.vectors)


def collect_samples(replicas: Sequence[Replica], limit: int) -> list[SampledQuery]:
    """Sampled queries of the replicas, interleaved, at most `limit`. Replicas that fail are skipped."""

    def ask(replica: Replica) -> list[SampledQuery]:
        try:
            return replica.samples(limit)
        except (httpx.HTTPError, ValueError, SettingsError) as error:
            log.warning("no samples from %s: %s", replica.url, error)
            return []

    kept = for_each_replica(replicas, ask)
    longest = max((len(k) for k in kept), default=0)
    return [k[n] for n in range(longest) for k in kept if n < len(k)][:limit]


def replay_queries(
    candidate: Release, live: Release | None, sampled: Sequence[SampledQuery], photos: Sequence[bytes], limit: int,
    asked: str = "held-out photos",
) -> ReplayQueries:  # fmt: skip
    """Queries for both versions, at most `limit`. `asked` says what the `photos` are.

    A sampled vector is asked as it is where the candidate has the encoder that made it; where it has another, only a photo that
    was kept can be asked of it.
    """
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    real = 0
    for sample in sampled:
        if len(ours) == limit:
            break
        own = _vector_for(candidate, sample)
        other = _vector_for(live, sample) if live is not None else own
        if own is not None and other is not None:
            ours.append(own)
            theirs.append(other)
            real += 1
    held_out = 0
    if real < LEAST:
        for photo in photos:
            if len(ours) == limit:
                break
            try:
                ours.append(candidate.encode_photo(photo).vector)
                theirs.append(live.encode_photo(photo).vector if live is not None else ours[-1])
            except ImageRejected:
                del ours[len(theirs) :]
                continue
            held_out += 1
    origin = " and ".join(text for text, n in ((f"{real} sampled real queries", real), (f"{held_out} {asked}", held_out)) if n)
    empty = np.zeros((0, candidate.searcher.dim), np.float32)
    vectors = np.stack(ours) if ours else empty
    live_vectors = (np.stack(theirs) if theirs else empty) if live is not None else None
    return ReplayQueries(vectors, live_vectors, origin or "no queries")


def top_ids(release: Release, vectors: np.ndarray) -> list[list[str]]:
    """Ids of a version's top 20 for query vectors (n, d)."""
    rows = [release.answer(EncodedQuery(vector), TOP).rows for vector in vectors]
    return [[r["product_id"] for r in release.searcher.features.take(found, ["product_id"])] for found in rows]


def churn(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> float:
    """Mean share of the live version's top 20 missing from the other; 0 without queries."""
    lost = [1 - len(set(a) & set(b)) / len(b) for a, b in zip(ours, theirs, strict=True) if b]
    return float(np.mean(lost)) if lost else 0.0


def _vector_for(release: Release | None, sample: SampledQuery) -> np.ndarray | None:
    if release is None:
        return None
    if sample.fingerprint == release.query.fingerprint:
        return sample.vector if len(sample.vector) == release.searcher.dim else None
    if sample.photo is None or sample.kind != "photo":
        return None
    try:
        return release.encode_photo(sample.photo, box=sample.box).vector
    except ImageRejected:
        return None
