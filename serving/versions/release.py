"""An opened and verified index version: query encoders, searcher and ranker.

A query passes three phases: encode (photo or text to an `EncodedQuery`), retrieve (candidates from all segments), rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import ValidationError

from serving.contract.box import Box
from serving.contract.encoder import Encoder, EncoderFolder
from serving.contract.files import ContractError, FileRef, first_error, open_verified
from serving.contract.manifest import CANDIDATES, IndexManifest
from serving.contract.palette import palette
from serving.contract.preprocess import DEFAULT_LIMITS, ImageLimits, decode
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from serving.index.collection import NOWHERE, Endpoint
from serving.index.searcher import Neighbors, Searcher
from serving.ranking.filters import Filter, FilterError, filter_mask
from serving.ranking.ranker import Ranked, RankerConfig, User, rank
from serving.versions.encoder_trial import EncoderTrial
from serving.versions.golden_answers import check_golden
from serving.versions.text_encoder import TextEncoder
from serving.versions.version_info import VersionInfo

UNIT_TOLERANCE = 1e-2
"""Largest difference of a query vector's length from 1."""


@dataclass(frozen=True)
class EncodedQuery:
    """Input of retrieval and ranking: a unit vector (d,) float32, and the palette (13,) uint8 of the query's picture, if any.

    `row`: the row of the query's product, which is left out of the answer.
    """

    vector: np.ndarray
    colours: np.ndarray | None = None
    row: int | None = None


class Release:
    """Answers queries from one index version. `text_encoder` is None where the encoder version has no text tower.

    `self_similarity` is what a product's own picture has with it when it is the query: below 1 where two towers share the space.
    """

    def __init__(
        self,
        version: str,
        manifest: IndexManifest,
        encoders: EncoderFolder,
        query: Encoder,
        searcher: Searcher,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        self.version, self.manifest, self.encoders = version, manifest, encoders
        self.query, self.searcher, self.text_encoder = query, searcher, text_encoder
        self.preprocess = encoders.manifest.preprocess
        self.version_info = _version_info(version, manifest)
        self.ranker = _ranker(manifest, searcher)
        self.identity = f"{version}|{manifest.id}|{manifest.digest()}|{query.fingerprint}|{self.ranker.digest()}"
        self.self_similarity = encoders.self_similarity(manifest.encoder.query, manifest.encoder.document)
        self.candidates = int(manifest.search.get("candidates") or CANDIDATES)
        require = self.ranker.rules.require
        self.required_rows = filter_mask(searcher.features, require) if require else None

    @classmethod
    def open(
        cls,
        version: str,
        manifest: IndexManifest,
        encoder: Path,
        locate: Callable[[FileRef], Path],
        threads: int = 1,
        runtime: Runtime = ONNXRUNTIME,
        trial: EncoderTrial | None = None,
        endpoint: Endpoint = NOWHERE,
    ) -> "Release":
        """Opens and verifies a version; `encoder` is its encoder's folder, `locate` gives the path of a segment file.

        `runtime` runs the photo encoder; texts are short and run in ONNX Runtime. `trial` opens both in a child process first.
        `endpoint` is that of the engine that holds the base vectors, where the manifest names one.

        Verifies every file's checksum, the encoder's fingerprint against that of the index, and the golden answers of encoder and
        index. Raises ContractError naming what fails; EngineUnavailable.
        """
        searcher = Searcher.open(manifest, lambda ref: open_verified(locate(ref), ref), endpoint=endpoint)
        check_golden(open_verified(locate(manifest.golden), manifest.golden), searcher)
        return cls.from_searcher(searcher, version, manifest, encoder, threads, runtime, trial)

    @classmethod
    def from_searcher(
        cls,
        searcher: Searcher,
        version: str,
        manifest: IndexManifest,
        encoder: Path,
        threads: int = 1,
        runtime: Runtime = ONNXRUNTIME,
        trial: EncoderTrial | None = None,
    ) -> Self:
        """A release over an open searcher; verifies its encoder. Raises ContractError."""
        wanted = manifest.encoder
        encoders = EncoderFolder(encoder, wanted.manifest)
        if encoders.manifest.variant(wanted.document).fingerprint != wanted.document_fingerprint:
            raise ContractError(f"encoder version {wanted.version} is not the one that embedded this index (fingerprint differs)")
        if trial is not None:
            trial(encoders, wanted.query, runtime)
        query = encoders.open(wanted.query, threads, runtime)
        if query.fingerprint != wanted.query_fingerprint:
            raise ContractError(
                f"the query encoder {wanted.query} is not the one this index was tuned with (fingerprint differs)"
            )
        return cls(version, manifest, encoders, query, searcher, TextEncoder.open(encoders, threads))

    def preprocess_photo(
        self, data: bytes, limits: ImageLimits = DEFAULT_LIMITS, box: Box | None = None, pixels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Decodes a photo, or a box of it, to encoder input (h, w, 3) uint8, and its palette where the ranker uses one.

        `pixels` is that input where it is there already. Raises ImageRejected or CostlyImage.
        """
        if pixels is None:
            pixels = decode(data, self.preprocess, limits, box)
        return pixels, palette(pixels) if self.searcher.features.palette is not None else None

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """The unit vector (d,) float32 of pixels (h, w, 3) uint8."""
        return self.query.encode(pixels[None])[0]

    def accepts_query(self, query: EncodedQuery) -> bool:
        """Validates a query from a shared cache: a unit vector of this version's dimension."""
        length = float(np.linalg.norm(query.vector.astype(np.float64)))
        return query.vector.shape == (self.searcher.dim,) and abs(length - 1) <= UNIT_TOLERANCE

    def accepts_candidates(self, found: Neighbors, k: int) -> bool:
        """Validates candidates from a shared cache: `k` rows of this version, best first."""
        similarity, rows = found.similarity[0], found.rows[0]
        there = rows >= 0
        return (
            len(rows) == k
            and bool((rows < self.searcher.rows).all())
            and bool(np.isfinite(similarity[there]).all())
            and bool((similarity[1:] <= similarity[:-1]).all())
        )

    def encode_photo(self, data: bytes, limits: ImageLimits = DEFAULT_LIMITS, box: Box | None = None) -> EncodedQuery:
        """Decodes and encodes a photo, or a box of it. Raises ImageRejected."""
        pixels, colours = self.preprocess_photo(data, limits, box)
        return EncodedQuery(self.encode(pixels), colours)

    def allowed(self, query_filter: Filter | None) -> np.ndarray | None:
        """Rows (n,) bool that pass the required filter and the query's filter. None: all. Raises FilterError."""
        if query_filter is None:
            return self.required_rows
        mask = filter_mask(self.searcher.features, query_filter)
        return mask if self.required_rows is None else mask & self.required_rows

    def away(self) -> str:
        """Why no search can be answered at the moment; "" where it can."""
        return self.searcher.away()

    @property
    def products(self) -> int:
        """Number of live products."""
        return self.searcher.live_rows

    def vector(self, row: int, latest: float | None = None) -> np.ndarray:
        """The stored vector (d,) float32 of a row."""
        return self.searcher.vector(row)

    def retrieve(
        self, xq: np.ndarray, candidates: int, query_filter: Filter | None = None, latest: float | None = None,
        words: bool = False,
    ) -> Neighbors:  # fmt: skip
        """First phase: the nearest rows of unit query vectors xq (nq, d) that pass the filters; of products without a picture only for
        `words`.

        `latest` (by time.monotonic) is the request's deadline, used where shards are searched over the network.
        """
        return self.searcher.search(xq, candidates, self.allowed(query_filter), words=words)

    def rank(self, found: Neighbors, k: int, query: EncodedQuery, user: User | None = None) -> Ranked:
        """Second phase: the k best of one query's candidates, with the user's preferences."""
        rows, similarity = found.rows[0], found.similarity[0]
        return rank(rows, similarity, self.searcher.features, self.ranker, k, user, query.colours, query.row)

    def answer(self, query: EncodedQuery, k: int = 20) -> Ranked:
        """Both phases, with the version's own number of candidates."""
        return self.rank(self.retrieve(query.vector[None], max(self.candidates, k)), k, query)

    def warm(self, rounds: int = 3) -> None:
        """Runs a few synthetic queries, so that the first request does not pay for page faults and lazy initialisation."""
        size = self.preprocess.size
        for n in range(rounds):
            pixels = np.full((size, size, 3), 40 * n, np.uint8)
            self.answer(EncodedQuery(self.encode(pixels), palette(pixels)))
            if self.text_encoder is not None:
                self.text_encoder.encode("a warm word")


def _version_info(version: str, manifest: IndexManifest) -> VersionInfo:
    """The version info of every answer."""
    tower, _, variant = manifest.encoder.query.partition(".")
    return VersionInfo(index=version, encoder=manifest.encoder.version, tower=tower, variant=variant, manifest=manifest.id)


def _ranker(manifest: IndexManifest, searcher: Searcher) -> RankerConfig:
    """The manifest's ranker config, validated against the version's columns. Raises ContractError."""
    try:
        config = RankerConfig.model_validate(manifest.ranker)
        config.rules.check(searcher.features)
    except ValidationError as error:
        raise ContractError(f"index {manifest.id}: ranker: {first_error(error)}") from None
    except FilterError as error:
        raise ContractError(f"index {manifest.id}: ranker: {error}") from None
    return config
