"""The manifests of encoder versions and index versions: JSON on disk, frozen models in memory.

Written in format 2, read in formats 1 and 2 (docs/decisions/0078). Every field of format 2 is optional, so that a format 1 manifest
is the same model without them, with the same `digest`.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from serving.contract.counts import Counts
from serving.contract.files import ContractError, FileRef, FrozenModel, first_error
from serving.contract.gate import Gate
from serving.contract.preprocess import PreprocessSpec
from serving.contract.provenance import Count, EmbeddingCommit, EngineRef, Origin, QuerySet, Training, optional

FORMAT: Literal[2] = 2
MAX_BYTES = 256 * 2**20
"""Most bytes of a manifest that are read: 400,000 segments, a thousand shards of four hundred each."""
PRECISIONS = ("fp32", "fp16", "int8")
SLOTS = ("blue", "green")
"""The slots of a replica; the alias of each name in the registry says which index version it holds."""

Scalar = str | int | float | bool | None
CANDIDATES = 500
"""Default number of first-phase candidates, where neither the request nor the version sets one."""


def _known_format(value: Any) -> Any:
    if type(value) is not int or value < 1:
        raise ValueError(f"{repr(value)[:40]} is no format of a manifest; 1 and {FORMAT} are")
    if value > FORMAT:
        raise ValueError(f"{value} is the format of a newer Vitrine; this one reads formats 1 and {FORMAT}: upgrade it first")
    return value


class Manifest(FrozenModel):
    """Base of both manifests. `signature`: Ed25519 over the rest (serving/contract/signing.py), base64; "" unsigned."""

    format: Annotated[Literal[1, 2], BeforeValidator(_known_format)] = FORMAT
    signature: Annotated[str, Field(pattern=r"^([A-Za-z0-9+/]{86}==)?$")] = optional("")

    def to_json(self) -> str:
        """The JSON to store: always in the newest format."""
        return self.model_copy(update={"format": FORMAT}).model_dump_json(indent=1)


class Variant(FrozenModel):
    """One ONNX file of a tower. `fingerprint` binds its bytes to the preprocessing; see `fingerprint`.

    `data` holds its weights where they are too large for the file itself (2 GiB), which then notes their sha256. `torchscript` is the
    same network for PyTorch. `alone`: inputs are run one at a time, since the scales of dynamic int8 depend on the batch.
    """

    file: FileRef
    fingerprint: str
    data: FileRef | None = optional()
    torchscript: FileRef | None = None
    alone: bool = False

    def graph_files(self) -> list[FileRef]:
        """The files that the ONNX graph consists of."""
        return [f for f in (self.file, self.data) if f is not None]


class EncoderManifest(Manifest):
    """One encoder version: towers that share one embedding space. File name: `encoder.json`.

    `towers[tower][variant]`, tower in teacher/student/text, variant in fp32/fp16/int8; student and text may be absent. `document`
    and `query` name the "tower.variant" that embeds the catalogue and the one that embeds shoppers' photos: they may be the same.
    `golden` is an .npz with `pixels` uint8 (n, size, size, 3), `tokens` int64 (n, context) when there is a text tower, and one
    float32 (n, dim) array per "tower.variant". `origin` and `trained` say where the weights come from and what was done to them;
    None: not stated, as for what was trained here from random weights.
    """

    name: str
    dim: int = Field(gt=0, le=65_536)
    preprocess: PreprocessSpec
    towers: dict[str, dict[str, Variant]]
    document: str
    query: str
    tokenizer: FileRef | None = None
    golden: FileRef
    recipe: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    origin: Origin | None = optional()
    trained: Training | None = optional()

    @model_validator(mode="after")
    def _roles_are_there(self) -> Self:
        names = self.names()
        if unknown := [n for n in names if n.partition(".")[2] not in PRECISIONS]:
            raise ValueError(f"there is no variant {unknown[0]!r}; a tower's variants are {', '.join(PRECISIONS)}")
        for role, name in (("document", self.document), ("query", self.query)):
            if name not in names:
                raise ValueError(f"{role} names {name!r}, and there is {', '.join(names) or 'no tower at all'}")
        return self

    def names(self) -> list[str]:
        """Every "tower.variant", sorted."""
        return sorted(f"{tower}.{variant}" for tower, variants in self.towers.items() for variant in variants)

    def variant(self, name: str) -> Variant:
        """The variant called "tower.variant"."""
        tower, _, variant = name.partition(".")
        try:
            return self.towers[tower][variant]
        except KeyError:
            raise ContractError(f"encoder {self.name} has no {name!r}; it has {', '.join(self.names())}") from None


class EncoderRef(FrozenModel):
    """The encoder version an index version needs, by registry version and by content."""

    name: str
    version: str
    run_id: str
    manifest: FileRef
    document: str
    document_fingerprint: str
    query: str
    query_fingerprint: str
    dim: int


class SnapshotRef(FrozenModel):
    """A published snapshot. `content_sha256` covers the rows, not when or where they were copied."""

    id: str
    uri: str
    rows: int
    content_sha256: str
    image_root: str = ""


class SegmentPictures(FrozenModel):
    """The pictures of a segment's products: `table`, a Parquet file whose row i describes position i of the index; it has `rows`."""

    rows: Count
    table: FileRef


class Segment(FrozenModel):
    """One immutable piece of a shard.

    base, delta: `table` is a Parquet file with one row a product, `rows` of them, and `index` a FAISS file over positions 0..n-1. Where
    every product has one picture, n is `rows` and row i of the table describes position i. Where some have several, there are
    `pictures`, whose row i describes position i and names its product (columns of both: serving/contract/segments.py).
    The vectors of a base without `index` lie in the manifest's `engine`.
    tombstones: no `index`; `table` has one int64 column `key`. A key in a tombstone segment is hidden in every segment of the shard
    with a smaller `sequence`, with all of its pictures.
    """

    kind: Literal["base", "delta", "tombstones"]
    shard: Count
    sequence: Count
    rows: Count
    family: str = ""
    index: FileRef | None = None
    table: FileRef
    pictures: SegmentPictures | None = optional()

    @property
    def vectors(self) -> int:
        """The number of vectors in the index: one a picture."""
        return self.rows if self.pictures is None else self.pictures.rows

    def files(self) -> list[FileRef]:
        """The files of this segment."""
        pictures = [self.pictures.table] if self.pictures else []
        return [*([self.index] if self.index else []), self.table, *pictures]

    @property
    def holds_rows(self) -> bool:
        """Whether it is a base or a delta."""
        return self.kind != "tombstones"


class IndexManifest(Manifest):
    """One index version: the release, with everything needed to answer queries. File name: `manifest.json`.

    `embeddings` are the commits that its vectors come from, the base's first; `queries` is what recall was measured on; `engine`
    holds the base rows where it is not FAISS.
    """

    id: str
    created_at: str
    encoder: EncoderRef
    snapshot: SnapshotRef
    shards: Count
    segments: tuple[Segment, ...]
    search: dict[str, Scalar]
    ranker: dict[str, Any] = {}
    counts: Counts
    golden: FileRef
    gates: tuple[Gate, ...] = ()
    parent: str = ""
    content_key: str = ""
    changes: tuple[FileRef, ...] = ()
    """The ledger of what changed since the snapshot (tasks/catalog/changes/ledger.py): needed to go on, not to answer."""
    embeddings: tuple[EmbeddingCommit, ...] = optional(())
    queries: QuerySet | None = optional()
    engine: EngineRef | None = optional()

    def files(self) -> list[FileRef]:
        """Every file of the release, except the encoder's."""
        return [*(f for s in self.segments for f in s.files()), self.golden]

    @property
    def several_pictures(self) -> bool:
        """Whether some product may have several pictures: then answers say which one matched."""
        return any(s.pictures is not None for s in self.segments)

    def digest(self) -> str:
        """Hash of the content (16 hex digits): processes with equal digests hold the same index version."""
        return hashlib.sha256(self.model_dump_json(exclude={"signature"}).encode()).hexdigest()[:16]


ManifestT = TypeVar("ManifestT", IndexManifest, EncoderManifest)


def read_manifest(path: Path, kind: type[ManifestT]) -> ManifestT:
    """Reads a manifest from a JSON file. Raises ContractError with its first validation error."""
    return parse_manifest(read_manifest_bytes(path), kind, str(path))


def read_manifest_bytes(path: Path) -> bytes:
    """A manifest's file, not parsed yet; no more than `parse_manifest` takes. Raises ContractError where there is none."""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ContractError(f"{path}: no such manifest") from None


def parse_manifest(data: bytes, kind: type[ManifestT], what: str) -> ManifestT:
    """A manifest from its JSON; `what` names it in errors. Types are strict. Raises ContractError with its first validation error."""
    if len(data) > MAX_BYTES:
        raise ContractError(f"{what}: not a {kind.__name__}: it has more than {MAX_BYTES} bytes, the most that are read")
    try:
        return kind.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise ContractError(f"{what}: not a {kind.__name__}: {first_error(error, 'the file')}") from None


def fingerprint(onnx_sha256: str, preprocess: PreprocessSpec) -> str:
    """sha256 over an ONNX file's sha256 and its preprocessing spec: identifies what made a vector."""
    spec = json.dumps(preprocess.model_dump(), sort_keys=True)
    return hashlib.sha256(f"{onnx_sha256}\n{spec}".encode()).hexdigest()
