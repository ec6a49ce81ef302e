"""The verifier: opens an index version independently and recomputes everything it checks."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError, FileRef, FrozenModel, verify
from serving.contract.keys import product_keys, shard_of
from serving.contract.manifest import EncoderRef, IndexManifest, Segment
from serving.contract.provenance import EngineRef
from serving.contract.segments import IMAGES, read_rows
from serving.index.collection import NOWHERE, Endpoint
from serving.index.engine import EngineUnavailable, FilterTooSlow
from serving.index.faiss_engine import FaissEngine
from serving.index.searcher import OpenSegment, Searcher, ordered
from serving.versions.golden_answers import check_golden
from tasks import storage
from tasks.catalog.changes.ledger import SCHEMA, latest_changes
from tasks.catalog.snapshot import MANIFEST, product_table, read_snapshot
from tasks.errors import StoreAway, VitrineError
from tasks.index.delta_version import quarantined_keys
from tasks.index.engine_families import KNOWN_FAMILIES
from tasks.index.index_type import family_index_type, index_type
from tasks.index.upload import whole_digest
from tasks.release.gates.reconcile import catalogue_now, reconcile

BLOCK, BLOCKS = 4096, 64
"""Stored vectors are looked at in blocks of so many, of a segment at most so many blocks, spread over it."""
LENGTH = 0.1
"""By how much a stored vector may be longer or shorter than 1: eight-bit codes err by a hundredth."""
SHOWN = 5


class Check(FrozenModel):
    """One check: passed, failed, or None when it could not be made; `detail` says what was found."""

    name: str
    passed: bool | None
    detail: str


class CheckSkipped(Exception):
    """A check that could not be made, with the reason; neither passed nor failed."""


def check_index(
    manifest: IndexManifest,
    locate: Callable[[FileRef], Path],
    encoder: Callable[[], Path] | None = None,
    endpoint: Endpoint = NOWHERE,
) -> list[Check]:
    """All checks of a version, in order; stops opening files after the first broken file or segment.

    Checksums of all files; segments that open with the rows, dimension and family the manifest says; keys that follow from product
    ids, lie in their shard and are live once; stored vectors that are finite and of unit length (of long segments a sample); counts;
    the products, against the snapshot and the ledger of what changed since, where the snapshot is still kept; the encoder, where
    `encoder` gives its folder: its manifest's checksum, both fingerprints, its golden outputs; golden answers. Reads every file
    whole.
    """
    done: list[Check] = []
    for name, check in _checks(manifest, locate, encoder, endpoint):
        passed: bool | None = True
        try:
            detail = check()
        except CheckSkipped as why:
            passed, detail = None, str(why)
        except (ContractError, VitrineError, EngineUnavailable, FilterTooSlow, pa.ArrowException) as error:
            passed, detail = False, str(error)
        done.append(Check(name=name, passed=passed, detail=detail))
        if passed is False and name in ("checksums", "segments"):
            break
    return done


def _checks(
    manifest: IndexManifest, locate: Callable[[FileRef], Path], encoder: Callable[[], Path] | None, endpoint: Endpoint
) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "checksums", lambda: _checksums(manifest, locate)
    opened: list[Searcher] = []
    yield "segments", lambda: _segments(manifest, locate, opened, endpoint)
    searcher = opened[0]
    yield "keys", lambda: _keys(searcher)
    yield "vectors", lambda: _vectors(searcher)
    if manifest.several_pictures:
        yield "pictures", lambda: _pictures(searcher)
    yield "counts", lambda: _counts(searcher)
    yield "snapshot", lambda: _snapshot(searcher, locate)
    if encoder is not None:
        yield "encoder", lambda: _encoder(manifest.encoder, encoder())
    yield "golden answers", lambda: _golden(searcher, locate)


def _checksums(manifest: IndexManifest, locate: Callable[[FileRef], Path]) -> str:
    files = [*manifest.files(), *manifest.changes]
    for ref in files:
        verify(locate(ref), ref)
    return f"{len(files)} files, {sum(f.bytes for f in files) / 2**20:.1f} MiB"


def _segments(manifest: IndexManifest, locate: Callable[[FileRef], Path], opened: list[Searcher], endpoint: Endpoint) -> str:
    """Opens all segments of the version into `opened`."""
    searcher = Searcher.open(manifest, locate, endpoint=endpoint)
    for segment, held in _pairs(searcher):
        if segment.family not in KNOWN_FAMILIES:
            raise ContractError(f"{segment.table.path}: there is no index family {segment.family!r}")
        if isinstance(held.engine, FaissEngine) and index_type(held.engine.index) != family_index_type(
            segment.family, searcher.dim
        ):
            raise ContractError(f"{segment.table.path}: the index beside it is not one of family {segment.family}")
    for segment in manifest.segments:
        if segment.kind == "tombstones":
            read_rows(locate(segment.table), rows=segment.rows)
    opened.append(searcher)
    return f"{len(manifest.segments)} segments of {manifest.shards} shards open"


def _pairs(searcher: Searcher) -> Iterator[tuple[Segment, OpenSegment]]:
    """Each base and delta of the manifest with its opened segment."""
    return zip([s for s in ordered(searcher.manifest.segments) if s.holds_rows], searcher.segments, strict=True)


def _keys(searcher: Searcher) -> str:
    features, live = searcher.features, searcher.live()
    ids = features.table["product_id"].to_pylist()
    if len(wrong := np.flatnonzero(product_keys(ids) != features.key)):
        raise ContractError(f"product {ids[wrong[0]]!r} has key {features.key[wrong[0]]}, which is not the key of its id")
    for segment, opened in _pairs(searcher):
        part = features.key[opened.start : opened.start + opened.rows]
        if (shard_of(part, searcher.manifest.shards) != segment.shard).any():
            raise ContractError(f"{segment.table.path}: it holds keys of other shards than {segment.shard}")
    unique, counts = np.unique(features.key[live], return_counts=True)
    if (counts > 1).any():
        raise ContractError(f"key {unique[counts > 1][0]} is live in more than one segment; a tombstone is missing")
    return f"{len(unique)} live products, each once"


def _vectors(searcher: Searcher) -> str:
    if searcher.manifest.engine is not None:
        _uploaded(searcher, searcher.manifest.engine)
    looked = unit = 0
    for segment, opened in _pairs(searcher):
        assert opened.engine is not None
        starts = range(0, opened.vectors, BLOCK)
        for start in starts[:: -(-len(starts) // BLOCKS) or 1]:
            positions = np.arange(start, min(start + BLOCK, opened.vectors))
            lengths = np.linalg.norm(opened.engine.vectors(positions), axis=1)
            exact = KNOWN_FAMILIES[segment.family].exact  # what another family keeps are estimates, of any length
            wrong = ~(np.abs(lengths - 1) <= LENGTH) if exact else ~np.isfinite(lengths)
            if wrong.any():
                place = int(np.argmax(wrong))
                row = start + place if opened.pictures is None else int(opened.pictures.rows[start + place])
                product = searcher.features.table["product_id"][opened.start + row].as_py()
                raise ContractError(
                    f"{segment.table.path}: the stored vector of product {product!r} has length {lengths[place]:.3g}, not 1"
                )
            looked += len(positions)
            unit += len(positions) * exact
    return f"{looked} of {searcher.vectors} stored vectors are finite, {unit} of them of unit length"


def _pictures(searcher: Searcher) -> str:
    """Each picture of a product once, and none that its row does not name."""
    images = searcher.features.table[IMAGES] if IMAGES in searcher.features.table.column_names else None
    for segment, opened in _pairs(searcher):
        if opened.pictures is None:
            continue
        rows, places = opened.pictures.rows.astype(np.int64), opened.pictures.places.astype(np.int64)
        there = np.zeros(opened.rows, np.int64)
        if images is not None:
            lengths = pc.fill_null(pc.list_value_length(images.slice(opened.start, opened.rows)), 0)
            there = lengths.to_numpy().astype(np.int64)
        strange = (places < -1) | (places > there[rows])
        twice = np.zeros(len(rows), bool)
        order = np.lexsort((places, rows))
        twice[order[1:]] = (np.diff(rows[order]) == 0) & (np.diff(places[order]) == 0)
        for wrong, what in ((strange, "which its row does not name"), (twice, "twice")):
            if wrong.any():
                place = int(np.argmax(wrong))
                product = searcher.features.table["product_id"][opened.start + int(rows[place])].as_py()
                raise ContractError(f"{segment.table.path}: it has picture {places[place]} of product {product!r}, {what}")
    return f"{searcher.live_vectors} pictures of {searcher.live_rows} live products"


def _uploaded(searcher: Searcher, ref: EngineRef) -> None:
    """Raises ContractError unless the collection gives back, byte for byte, the vectors that were uploaded."""
    digests = []
    for segment in (s for s in searcher.segments if s.base):
        found = hashlib.sha256()
        for start in range(0, segment.vectors, BLOCK):
            assert segment.engine is not None
            found.update(segment.engine.vectors(np.arange(start, min(start + BLOCK, segment.vectors))).astype("<f4").tobytes())
        digests.append(found.hexdigest())
    if whole_digest(digests) != ref.digest:
        raise ContractError(f"{ref.name} no longer holds in collection {ref.collection} the vectors that were uploaded")


def _counts(searcher: Searcher) -> str:
    manifest, counts = searcher.manifest, searcher.manifest.counts
    if counts.pictures not in (None, searcher.live_vectors):
        raise ContractError(
            f"the manifest counts {counts.pictures} pictures of servable products and there are {searcher.live_vectors}"
        )
    if (counts.titles or 0) != searcher.live_titles:
        raise ContractError(
            f"the manifest counts {counts.titles or 0} products without a picture and there are {searcher.live_titles}"
        )
    facts = {
        "indexed": searcher.rows,
        "servable": searcher.live_rows,
        "embedded": searcher.live_rows,
        "tombstoned": sum(s.rows for s in manifest.segments if s.kind == "tombstones"),
    }
    for name, found in facts.items():
        if getattr(counts, name) != found:
            raise ContractError(f"the manifest counts {getattr(counts, name)} {name} products and there are {found}")
    if counts.catalogue != counts.embedded + counts.quarantined:
        raise ContractError(
            f"the manifest counts {counts.catalogue} products in the catalogue, which are not the {counts.embedded} embedded and "
            f"{counts.quarantined} quarantined ones"
        )
    return f"{searcher.live_rows} servable, {counts.quarantined} quarantined, of {counts.catalogue}"


def _snapshot(searcher: Searcher, locate: Callable[[FileRef], Path]) -> str:
    """Compares the products one by one with the catalogue: the snapshot and the ledger's later changes."""
    manifest, wanted = searcher.manifest, searcher.manifest.snapshot
    try:
        there = storage.exists(storage.join(wanted.uri, MANIFEST))
    except (OSError, StoreAway) as error:
        raise CheckSkipped(f"{wanted.uri} cannot be read ({error}), so lost products would not be noticed") from None
    if not there:
        raise CheckSkipped(f"{wanted.uri} is not there (any more), so lost products would not be noticed")
    snapshot = read_snapshot(wanted.uri)
    for name in ("id", "rows", "content_sha256"):
        said, found = getattr(wanted, name), getattr(snapshot, name)
        if said != found:
            raise ContractError(f"{wanted.uri}: its {name} is {found}, where the manifest says {said}")
    ledger = latest_changes(read_rows(locate(ref), SCHEMA.names) for ref in manifest.changes)
    catalogue = catalogue_now(snapshot, ledger)
    base = np.concatenate([searcher.features.key[s.start : s.start + s.rows] for s in searcher.segments if s.base])
    bad = quarantined_keys(product_table(wanted.uri, ["key"])["key"].to_numpy(), base, ledger)
    found = reconcile(searcher, catalogue, bad)
    if found.missing or len(bad) != manifest.counts.quarantined:
        lost = found.missing or catalogue.filter(pa.array(np.isin(catalogue["key"], bad)))["product_id"].to_pylist()
        raise ContractError(
            f"{len(found.missing) + len(bad)} products of the catalogue cannot be found and {manifest.counts.quarantined} are "
            f"quarantined{': ' if lost else ''}{_shown(lost)}"
        )
    if found.strange:
        raise ContractError(f"{len(found.strange)} servable products are not in the catalogue: {_shown(found.strange)}")
    if found.doubled:
        raise ContractError(f"{len(found.doubled)} products are found twice, or in spite of quarantine: {_shown(found.doubled)}")
    if len(catalogue) != manifest.counts.catalogue:
        raise ContractError(
            f"the manifest counts {manifest.counts.catalogue} products in the catalogue and there are {len(catalogue)}"
        )
    since = f" with {len(ledger)} changes" if len(ledger) else ""
    return f"every product of {wanted.id}{since} is servable or one of {len(bad)} in quarantine"


def _shown(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")


def _encoder(expected: EncoderRef, folder: Path) -> str:
    verify(folder / "encoder.json", expected.manifest)
    held = EncoderFolder(folder)
    if held.manifest.dim != expected.dim:
        raise ContractError(
            f"encoder version {expected.version} gives dimension {held.manifest.dim}, the index has {expected.dim}"
        )
    for name, print_ in ((expected.document, expected.document_fingerprint), (expected.query, expected.query_fingerprint)):
        if held.open(name).fingerprint != print_:
            raise ContractError(
                f"encoder version {expected.version}: {name} is not the one this index was made with (fingerprint differs)"
            )
    return f"version {expected.version}: {expected.document} and {expected.query} have their fingerprints and golden outputs"


def _golden(searcher: Searcher, locate: Callable[[FileRef], Path]) -> str:
    golden = searcher.manifest.golden
    check_golden(verify(locate(golden), golden), searcher)
    return "reproduced"
