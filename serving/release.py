"""An index version, opened whole: its query encoder, its searcher and its ranker. Opened means verified."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.contract.encoder import EncoderFolder, OnnxEncoder
from serving.contract.files import ContractError, FileRef, verify
from serving.contract.manifest import IndexManifest
from serving.contract.preprocess import DEFAULT_LIMITS, ImageLimits, decode
from serving.golden import check_golden
from serving.ranker import Ranked, RankerConfig, User, rank
from serving.searcher import Found, Searcher


@dataclass(frozen=True)
class Answer:
    """The ranked rows for one query and how long each phase took, in milliseconds."""

    ranked: Ranked
    timings_ms: dict[str, float]


class Release:
    """Everything that answers a query, all of one version."""

    def __init__(
        self, version: str, manifest: IndexManifest, encoders: EncoderFolder, query: OnnxEncoder, searcher: Searcher
    ) -> None:
        self.version, self.manifest, self.encoders = version, manifest, encoders
        self.query, self.searcher = query, searcher
        self.preprocess = encoders.manifest.preprocess
        self.ranker = RankerConfig.model_validate(manifest.ranker)
        self.identity = f"{version}|{manifest.id}|{query.fingerprint}"
        self.candidates = int(manifest.search.get("candidates") or 500)

    @classmethod
    def open(
        cls, version: str, manifest: IndexManifest, encoder: Path, locate: Callable[[FileRef], Path], threads: int = 1
    ) -> "Release":
        """Opens a version; `encoder` is its encoder's folder, `locate` gives the path of a segment file.

        Every file is compared with its checksum, the encoder with the fingerprint the index was made with, and both the
        encoder and the index must reproduce their golden answers. Raises ContractError naming what does not.
        """
        wanted = manifest.encoder
        verify(encoder / "encoder.json", wanted.manifest)
        encoders = EncoderFolder(encoder)
        if encoders.manifest.variant(wanted.document).fingerprint != wanted.document_fingerprint:
            raise ContractError(f"encoder version {wanted.version} is not the one that embedded this index (fingerprint differs)")
        query = encoders.open(wanted.query, threads)
        if query.fingerprint != wanted.query_fingerprint:
            raise ContractError(
                f"the query encoder {wanted.query} is not the one this index was tuned with (fingerprint differs)"
            )
        searcher = Searcher.open(manifest, lambda ref: verify(locate(ref), ref))
        check_golden(verify(locate(manifest.golden), manifest.golden), searcher)
        return cls(version, manifest, encoders, query, searcher)

    def encode_photo(self, data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[np.ndarray, dict[str, float]]:
        """The query vector (d,) float32 of a photo's bytes, with decode and encode times. Raises ImageRejected."""
        began = time.perf_counter()
        pixels = decode(data, self.preprocess, limits)
        decoded = time.perf_counter()
        vector = self.query.encode(pixels[None])[0]
        encoded = time.perf_counter()
        return vector, {"decode": 1e3 * (decoded - began), "encode": 1e3 * (encoded - decoded)}

    def answer(
        self, vector: np.ndarray, k: int = 20, candidates: int = 0, allowed: np.ndarray | None = None, user: User | None = None
    ) -> Answer:
        """The k best products for a unit query vector (d,): candidates from the index, then the ranker."""
        began = time.perf_counter()
        found = self.retrieve(vector, max(candidates or self.candidates, k), allowed)
        retrieved = time.perf_counter()
        ranked = self.rank(found, k, user)
        done = time.perf_counter()
        return Answer(ranked, {"retrieve": 1e3 * (retrieved - began), "rank": 1e3 * (done - retrieved)})

    def retrieve(self, vector: np.ndarray, candidates: int, allowed: np.ndarray | None = None) -> Found:
        """The first phase: the nearest rows of one unit query vector (d,)."""
        return self.searcher.search(vector[None], candidates, allowed)

    def rank(self, found: Found, k: int, user: User | None = None) -> Ranked:
        """The second phase: the k best of one query's candidates."""
        return rank(found.rows[0], found.similarity[0], self.searcher.features, self.ranker, k, user)

    def warm(self, rounds: int = 3) -> None:
        """Runs a few made-up queries, so that the first shopper does not pay for page faults and lazy set-up."""
        size = self.preprocess.size
        for n in range(rounds):
            vector = self.query.encode(np.full((1, size, size, 3), 40 * n, np.uint8))[0]
            self.answer(vector)
