"""Validates all vectors of a run in one pass before an index is built from them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from serving.contract.segments import POSITION
from tasks import storage
from tasks.catalog.snapshot import Snapshot, product_batches
from tasks.embed.job import EmbedResult
from tasks.index.vectors import matrix, shard_uri
from tasks.validate.embedding_moments import Moments, MomentsAccumulator, shift
from tasks.validate.expectations import Check, Validation, run_checks
from tasks.validate.snapshot import product_ids

BATCH_ROWS = 20_000
SAMPLE_KEYS = 5
WORDS = {
    "least_dimension": "the smallest dimension of a vector", "greatest_dimension": "the largest dimension of a vector",
    "not_finite": "the number of vectors with NaN or infinity", "least_norm": "the length of the shortest vector",
    "greatest_norm": "the length of the longest vector", "constant_dimensions": "the number of dimensions that are the same in all vectors",
    "duplicate_share": "the share of different pictures with one and the same vector",
    "quarantined_share": "the share of products without a usable picture",
    "quarantined_picture_share": "the share of pictures that cannot be used",
    "mean_shift": "how far the vectors' mean moved since the last version",
    "covariance_shift": "the share by which the vectors' covariance changed since the last version",
    "unsorted": "the number of vectors out of order", "misplaced": "the number of vectors in the wrong shard",
    "unknown": "the number of vectors of products that are not in the catalogue", "embedded": "the number of embedded products",
}  # fmt: skip
"""What the checked columns hold."""
FAULTS = {
    "not_finite": "NaN or infinity", "norm": "wrong length", "duplicate": "the same vector", "misplaced": "in the wrong shard",
    "unknown": "not in the catalogue",
}  # fmt: skip
"""The kinds of faulty vectors in words."""


@dataclass(frozen=True)
class EmbeddingLimits:
    """Thresholds of the embedding checks."""

    most_quarantined: float = 0.02
    norm_error: float = 0.01
    """float16 rounds a unit vector of 512 dimensions by less than 0.001."""
    most_duplicates: float = 0.05
    """Share of images whose vector is that of another image, bit by bit: an encoder that collapsed gives nothing else."""
    most_constant: float = 0.5
    """Share of dimensions with one value in all vectors. Features behind a ReLU have some, of a catalogue that is small or of one kind
    of product, and nothing is lost by them; with more than half of them the encoder's output is hardly used."""
    most_mean_shift: float = 0.1
    most_covariance_shift: float = 0.5


@dataclass
class InspectionResult:
    """Result of one pass over all vectors: facts, per-shard facts, and keys of faulty products by kind."""

    facts: dict[str, Any]
    shards: list[dict[str, int]]
    moments: Moments
    bad: dict[str, list[int]] = field(default_factory=dict)


def inspect(embedded: EmbedResult, snapshot: Snapshot, fingerprint: str) -> InspectionResult:
    """Reads every vector of the run once, with page checksums; needs 8 bytes of memory per product and 24 per vector."""
    known = np.sort(np.concatenate([b["key"].to_numpy() for b in product_batches(snapshot.uri, ["key"])]))
    gathering = MomentsAccumulator(embedded.dim, embedded.pictures or embedded.embedded)
    total, squares = np.zeros(embedded.dim), np.zeros(embedded.dim)
    bad: dict[str, list[int]] = {"not_finite": [], "norm": [], "duplicate": [], "unknown": [], "misplaced": []}
    facts: dict[str, Any] = {"vectors": 0, "products": 0, "not_finite": 0, "least_norm": np.inf, "greatest_norm": -np.inf}
    facts |= {"least_dimension": embedded.dim, "greatest_dimension": embedded.dim}
    words, prints, keys, shards = [], [], [], []

    def note(name: str, found: np.ndarray) -> None:
        bad[name] += found[: SAMPLE_KEYS - len(bad[name])].tolist()

    for shard in range(embedded.shards):
        row = {"shard": shard, "vectors": 0, "unsorted": 0, "misplaced": 0, "unknown": 0}
        last = (-1, 0)
        for uri in storage.list_files(shard_uri(embedded.vectors_uri, shard), ".parquet"):
            with storage.open_input(uri) as stream:
                file = pq.ParquetFile(stream, page_checksum_verification=True)
                dim = file.schema_arrow.field("vector").type.list_size
                facts["least_dimension"] = min(facts["least_dimension"], dim)
                facts["greatest_dimension"] = max(facts["greatest_dimension"], dim)
                if dim != embedded.dim:
                    continue
                for batch in file.iter_batches(BATCH_ROWS, columns=["key", "image_sha256", "vector", POSITION]):
                    key, vectors = batch["key"].to_numpy(), matrix(batch["vector"])
                    position = batch[POSITION].to_numpy() if POSITION in batch.schema.names else np.zeros(len(key), np.int16)
                    further, later = np.diff(key, prepend=last[0]), np.diff(position.astype(int), prepend=last[1])
                    row["vectors"] += len(key)
                    row["unsorted"] += int(((further < 0) | ((further == 0) & (later <= 0))).sum())
                    facts["products"] += int((further != 0).sum())
                    last = (int(key[-1]), int(position[-1])) if len(key) else last
                    away = key[key % embedded.shards != shard]
                    strange = key[known[np.minimum(np.searchsorted(known, key), len(known) - 1)] != key]
                    row["misplaced"] += len(away)
                    row["unknown"] += len(strange)
                    note("misplaced", away)
                    note("unknown", strange)
                    finite = np.isfinite(vectors).all(axis=1)
                    facts["not_finite"] += int((~finite).sum())
                    note("not_finite", key[~finite])
                    good = vectors[finite].astype(np.float32)
                    norms = np.linalg.norm(good, axis=1)
                    facts["least_norm"] = min(facts["least_norm"], float(norms.min(initial=np.inf)))
                    facts["greatest_norm"] = max(facts["greatest_norm"], float(norms.max(initial=-np.inf)))
                    note("norm", key[finite][np.abs(norms - 1) > EmbeddingLimits.norm_error])
                    total += good.sum(axis=0)
                    squares += (good**2).sum(axis=0)
                    shown = position >= 0  # what titles are like says nothing about pictures
                    gathering.add(good[shown[finite]])
                    words.append(_words(batch["image_sha256"])[shown])
                    prints.append(_prints(vectors)[shown])
                    keys.append(key[shown])
        facts["vectors"] += row["vectors"]
        shards.append(row)
    count = max(facts["vectors"], 1)
    spread = squares / count - (total / count) ** 2
    facts["constant_dimensions"] = int((spread < 1e-10).sum()) if facts["vectors"] > 1 else 0
    facts["duplicate_share"], same = _duplicates(words, prints, keys)
    note("duplicate", same)
    return InspectionResult(facts, shards, gathering.moments(fingerprint), bad)


def check_embeddings(
    inspection: InspectionResult,
    embedded: EmbedResult,
    snapshot: Snapshot,
    before: Moments | None,
    docs: Path,
    limits: EmbeddingLimits,
) -> Validation:
    """Checks vectors by themselves, against the catalogue, and against the last version's. Failures are in the result."""
    facts = inspection.facts | {
        "catalogue": snapshot.rows, "accounted": embedded.embedded + embedded.quarantined, "embedded": embedded.embedded,
        "quarantined_share": embedded.quarantined / max(snapshot.rows, 1),
    }  # fmt: skip
    several = embedded.catalogue_pictures > embedded.catalogue
    checks = [
        _equal("catalogue", "accounted"), *_all_vectors(several),
        _between("least_dimension", embedded.dim, embedded.dim), _between("greatest_dimension", embedded.dim, embedded.dim),
        _between("not_finite", 0, 0), _between("least_norm", 1 - limits.norm_error, None),
        _between("greatest_norm", None, 1 + limits.norm_error),
        _between("constant_dimensions", 0, int(embedded.dim * limits.most_constant)),
        _between("duplicate_share", 0, limits.most_duplicates, "VITRINE_MAX_DUPLICATES"),
        _between(
            "quarantined_share", 0, limits.most_quarantined, "VITRINE_MOST_QUARANTINED",
            f"{embedded.quarantined} of {snapshot.rows} pictures unusable, allowed {limits.most_quarantined * 100:.3g} %",
        ),
    ]  # fmt: skip
    if several:
        lost, pictures = embedded.quarantined_pictures, embedded.catalogue_pictures
        facts |= {"pictures": embedded.pictures, "catalogue_pictures": snapshot.pictures, "accounted_pictures": pictures}
        facts["quarantined_picture_share"] = lost / pictures
        failure = f"{lost} of {pictures} pictures cannot be used, allowed {limits.most_quarantined * 100:.3g} %"
        checks += [_equal("catalogue_pictures", "accounted_pictures")]
        checks += [_between("quarantined_picture_share", 0, limits.most_quarantined, "VITRINE_MOST_QUARANTINED", failure)]
    moved = shift(before, inspection.moments) if before is not None else None
    if moved is not None:
        facts |= {"mean_shift": moved[0], "covariance_shift": moved[1]}
        checks += [_between("mean_shift", 0, limits.most_mean_shift, "VITRINE_MAX_MEAN_SHIFT")]
        checks += [_between("covariance_shift", 0, limits.most_covariance_shift, "VITRINE_MOST_DRIFT")]
    also = [f"in quarantine: {', '.join(f'{n} {reason}' for reason, n in embedded.reasons.items())}"] if embedded.reasons else []
    also += [embedded.picture_summary] if several else []
    also += _named(
        inspection,
        snapshot,
        ("not_finite", "norm", *(["duplicate"] if facts["duplicate_share"] > limits.most_duplicates else [])),
    )
    return run_checks("embeddings", {"facts": pd.DataFrame([facts])}, checks, docs, also=also)


def check_index_inputs(inspection: InspectionResult, embedded: EmbedResult, snapshot: Snapshot, docs: Path) -> Validation:
    """Checks that the shards hold every usable picture exactly once, in the right shard. Failures are in the result."""
    facts = {"embedded": embedded.pictures or embedded.embedded, "in_shards": sum(s["vectors"] for s in inspection.shards)}
    checks = [_equal("embedded", "in_shards"), _between("embedded", 1, None)]
    checks += [
        Check("shards", "ExpectColumnValuesToBeBetween", {"column": name, "min_value": 0, "max_value": 0}, words=WORDS[name])
        for name in ("unsorted", "misplaced", "unknown")
    ]
    frames = {"facts": pd.DataFrame([facts]), "shards": pd.DataFrame(inspection.shards)}
    return run_checks("index inputs", frames, checks, docs, also=_named(inspection, snapshot, ("misplaced", "unknown")))


def _named(inspection: InspectionResult, snapshot: Snapshot, kinds: tuple[str, ...]) -> list[str]:
    """Sample product ids of each kind of fault."""
    return [
        f"{FAULTS[kind]}: products {', '.join(product_ids(snapshot, np.array(inspection.bad[kind]), SAMPLE_KEYS))}"
        for kind in kinds
        if inspection.bad[kind]
    ]


def _words(checksums: pa.Array) -> np.ndarray:
    """The first 8 bytes of each image's sha256."""
    raw = np.frombuffer(checksums.buffers()[1], np.uint8)[checksums.offset * 32 : (checksums.offset + len(checksums)) * 32]
    return np.ascontiguousarray(raw.reshape(-1, 32)[:, :8]).view(np.uint64).ravel()


def _prints(vectors: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each vector's bits: a sum of its words times odd random numbers, modulo 2**64."""
    raw = np.ascontiguousarray(vectors).view(np.uint8).reshape(len(vectors), -1)
    raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % 8)))
    words = raw.view(np.uint64)
    odd = np.random.default_rng(0).integers(0, 2**63, words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return (words * odd).sum(axis=1, dtype=np.uint64)


def _duplicates(words: list[np.ndarray], prints: list[np.ndarray], keys: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """The share of images whose vector another image has too, and keys of products with such images."""
    if not sum(map(len, words)):
        return 0.0, np.zeros(0, np.int64)
    _, first = np.unique(np.concatenate(words), return_index=True)
    seen, counts = np.unique(np.concatenate(prints)[first], return_counts=True)
    shared = np.isin(np.concatenate(prints)[first], seen[counts > 1])
    return 1 - len(seen) / len(first), np.concatenate(keys)[first][shared][:SAMPLE_KEYS]


def _all_vectors(several: bool) -> list[Check]:
    """Every embedded product has a vector; with several pictures a product, every usable picture has."""
    return [_equal("embedded", "products"), _equal("pictures", "vectors")] if several else [_equal("embedded", "vectors")]


def _equal(a: str, b: str) -> Check:
    return Check("facts", "ExpectColumnPairValuesToBeEqual", {"column_A": a, "column_B": b})


def _between(column: str, least: float | None, most: float | None, setting: str = "", failure: str = "") -> Check:
    limits = {n: v for n, v in (("min_value", least), ("max_value", most)) if v is not None}
    words = WORDS.get(column, "")
    return Check("facts", "ExpectColumnValuesToBeBetween", {"column": column} | limits, setting, failure, words)
