"""The verifier: opens an index version as a stranger would, and believes nothing that it has not recomputed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError, FileRef, Frozen, verify
from serving.contract.keys import product_keys, shard_of
from serving.contract.manifest import EncoderRef, IndexManifest
from serving.golden import check_golden
from serving.searcher import Searcher
from tasks.catalog.snapshot import product_batches

SAMPLE = 2000
SHOWN = 5


class Check(Frozen):
    """One thing that was checked: whether it holds, and what was seen."""

    name: str
    passed: bool
    detail: str


def check_index(
    manifest: IndexManifest, locate: Callable[[FileRef], Path], snapshot_uri: str = "", encoder: Path | None = None
) -> list[Check]:
    """Every check of a version, in order; after the first broken file or segment nothing more is opened.

    Checksums of all files; segments that open with the rows and dimension the manifest says; keys that follow from product ids,
    lie in their shard and are live once; stored vectors that are finite (a sample); counts; the snapshot, where `snapshot_uri` is
    given; the encoder, where its folder is given: its manifest's checksum, both fingerprints, its golden outputs; golden answers.
    Reads every file whole.
    """
    done: list[Check] = []
    for name, check in _checks(manifest, locate, snapshot_uri, encoder):
        try:
            done.append(Check(name=name, passed=True, detail=check()))
        except ContractError as error:
            done.append(Check(name=name, passed=False, detail=str(error)))
            if name in ("checksums", "segments"):
                break
    return done


def _checks(
    manifest: IndexManifest, locate: Callable[[FileRef], Path], snapshot_uri: str, encoder: Path | None
) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "checksums", lambda: _checksums(manifest, locate)
    opened: list[Searcher] = []

    def segments() -> str:
        opened.append(Searcher.open(manifest, locate))
        return f"{len(manifest.segments)} segments of {manifest.shards} shards open"

    yield "segments", segments
    searcher = opened[0]
    yield "keys", lambda: _keys(searcher)
    yield "vectors", lambda: _unit_vectors(searcher)
    yield "counts", lambda: _counts(searcher)
    if snapshot_uri:
        yield "snapshot", lambda: _snapshot(searcher, snapshot_uri)
    if encoder is not None:
        yield "encoder", lambda: _encoder(manifest.encoder, encoder)
    yield "golden answers", lambda: _golden(searcher, locate)


def _checksums(manifest: IndexManifest, locate: Callable[[FileRef], Path]) -> str:
    files = manifest.files()
    for ref in files:
        verify(locate(ref), ref)
    return f"{len(files)} files, {sum(f.bytes for f in files) / 2**20:.1f} MiB"


def _keys(searcher: Searcher) -> str:
    features, live = searcher.features, searcher.live()
    ids = features.table["product_id"].to_pylist()
    if len(wrong := np.flatnonzero(product_keys(ids) != features.key)):
        raise ContractError(f"product {ids[wrong[0]]!r} has key {features.key[wrong[0]]}, which is not the key of its id")
    bases = [s for s in searcher.manifest.segments if s.index is not None]
    for segment, opened in zip(sorted(bases, key=lambda s: (s.shard, s.sequence, s.kind)), searcher.segments, strict=True):
        part = features.key[opened.start : opened.start + opened.rows]
        if (shard_of(part, searcher.manifest.shards) != segment.shard).any():
            raise ContractError(f"{segment.table.path}: it holds keys of other shards than {segment.shard}")
    unique, counts = np.unique(features.key[live], return_counts=True)
    if (counts > 1).any():
        raise ContractError(f"key {unique[counts > 1][0]} is live in more than one segment; a tombstone is missing")
    return f"{len(unique)} live products, each once"


def _unit_vectors(searcher: Searcher) -> str:
    rows = np.unique(np.linspace(0, max(searcher.rows - 1, 0), SAMPLE).astype(int)) if searcher.rows else np.zeros(0, int)
    vectors = [searcher.vector(int(r)) for r in rows]
    if vectors and not np.isfinite(np.stack(vectors)).all():
        raise ContractError("stored vectors hold NaN or infinity")
    return f"{len(vectors)} stored vectors are finite"


def _counts(searcher: Searcher) -> str:
    counts = searcher.manifest.counts
    facts = {"indexed": searcher.rows, "servable": searcher.live_rows}
    for name, found in facts.items():
        if getattr(counts, name) != found:
            raise ContractError(f"the manifest counts {getattr(counts, name)} {name} products and there are {found}")
    return f"{searcher.live_rows} servable, {counts.quarantined} quarantined, of {counts.catalogue}"


def _snapshot(searcher: Searcher, uri: str) -> str:
    live = set(searcher.features.key[searcher.live()].tolist())
    missing: list[str] = []
    for batch in product_batches(uri, ["product_id", "key"]):
        for product_id, key in zip(batch["product_id"].to_pylist(), batch["key"].to_pylist(), strict=True):
            if key in live:
                live.remove(key)
            else:
                missing.append(product_id)
    if live:
        raise ContractError(f"{len(live)} servable products are not in the snapshot, the first with key {min(live)}")
    quarantined = searcher.manifest.counts.quarantined
    if len(missing) != quarantined:
        shown = ", ".join(missing[:SHOWN])
        raise ContractError(f"{len(missing)} products of the snapshot cannot be found and {quarantined} are quarantined: {shown}")
    return f"every product is servable or one of {quarantined} in quarantine"


def _encoder(wanted: EncoderRef, folder: Path) -> str:
    verify(folder / "encoder.json", wanted.manifest)
    held = EncoderFolder(folder)
    if held.manifest.dim != wanted.dim:
        raise ContractError(f"encoder version {wanted.version} gives dimension {held.manifest.dim}, the index has {wanted.dim}")
    for name, print_ in ((wanted.document, wanted.document_fingerprint), (wanted.query, wanted.query_fingerprint)):
        if held.open(name).fingerprint != print_:
            raise ContractError(
                f"encoder version {wanted.version}: {name} is not the one this index was made with (fingerprint differs)"
            )
    return f"version {wanted.version}: {wanted.document} and {wanted.query} have their fingerprints and golden outputs"


def _golden(searcher: Searcher, locate: Callable[[FileRef], Path]) -> str:
    golden = searcher.manifest.golden
    check_golden(verify(locate(golden), golden), searcher)
    return "reproduced"
