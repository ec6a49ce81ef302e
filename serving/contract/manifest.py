"""The manifests of encoder versions and index versions: JSON on disk, frozen models in memory."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from serving.contract.files import ContractError, FileRef, Frozen, first_error
from serving.contract.preprocess import PreprocessSpec

Scalar = str | int | float | bool | None
CANDIDATES = 500
"""Default number of first-phase candidates, where neither the request nor the version sets one."""


class Variant(Frozen):
    """One ONNX file of a tower. `fingerprint` binds its bytes to the preprocessing; see `fingerprint`.

    `torchscript` is the same network for PyTorch. `alone`: inputs are run one at a time, since the scales of dynamic int8 depend
    on the batch.
    """

    file: FileRef
    fingerprint: str
    torchscript: FileRef | None = None
    alone: bool = False


class EncoderManifest(Frozen):
    """One encoder version: towers that share one embedding space. File name: `encoder.json`.

    `towers[tower][variant]`, tower in teacher/student/text, variant in fp32/fp16/int8. `document` and `query` name the
    "tower.variant" that embeds the catalogue and the one that embeds shoppers' photos. `golden` is an .npz with
    `pixels` uint8 (n, size, size, 3), `tokens` int64 (n, context) when there is a text tower, and one float32 (n, dim)
    array per "tower.variant".
    """

    format: Literal[1] = 1
    name: str
    dim: int = Field(gt=0)
    preprocess: PreprocessSpec
    towers: dict[str, dict[str, Variant]]
    document: str
    query: str
    tokenizer: FileRef | None = None
    golden: FileRef
    recipe: dict[str, Any] = {}
    metrics: dict[str, float] = {}

    def variant(self, name: str) -> Variant:
        """The variant called "tower.variant"."""
        tower, _, variant = name.partition(".")
        try:
            return self.towers[tower][variant]
        except KeyError:
            known = sorted(f"{t}.{v}" for t, vs in self.towers.items() for v in vs)
            raise ContractError(f"encoder {self.name} has no {name!r}; it has {', '.join(known)}") from None


class EncoderRef(Frozen):
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


class SnapshotRef(Frozen):
    """A published snapshot. `content_sha256` covers the rows, not when or where they were copied."""

    id: str
    uri: str
    rows: int
    content_sha256: str
    image_root: str = ""


class Segment(Frozen):
    """One immutable piece of a shard.

    base, delta: `index` is a FAISS file over positions 0..rows-1 and `table` a Parquet file whose row i describes position i
    (columns: see serving/contract/segments.py). tombstones: no `index`; `table` has one int64 column `key`.
    A key in a tombstone segment is hidden in every segment of the shard with a smaller `sequence`.
    """

    kind: Literal["base", "delta", "tombstones"]
    shard: int
    sequence: int
    rows: int
    family: str = ""
    index: FileRef | None = None
    table: FileRef


class Gate(Frozen):
    """A named check: the measured value, the threshold, and whether it passed."""

    name: str
    value: float
    threshold: float
    passed: bool
    reason: str

    @classmethod
    def at_least(cls, name: str, value: float, threshold: float, what: str, shown: str = "{:.4g}") -> "Gate":
        """Passes when the value reaches the threshold. `shown` formats both for the sentence, such as "{:.1%}" or "{:.0f} ms"."""
        limit = f"at least {shown.format(threshold)} is required"
        return cls.judged(name, value, threshold, value >= threshold, f"{what}: {shown.format(value)} ({limit})")

    @classmethod
    def at_most(cls, name: str, value: float, threshold: float, what: str, shown: str = "{:.4g}") -> "Gate":
        """Passes when the value does not exceed the threshold. `shown`: see `at_least`."""
        limit = f"at most {shown.format(threshold)} is allowed"
        return cls.judged(name, value, threshold, value <= threshold, f"{what}: {shown.format(value)} ({limit})")

    @classmethod
    def judged(cls, name: str, value: float, threshold: float, passed: bool, reason: str) -> "Gate":
        """A check decided by other rules than a bound; `reason` is one sentence with the value and the rule."""
        return cls(name=name, value=float(value), threshold=float(threshold), passed=bool(passed), reason=reason)


class Counts(Frozen):
    """Reconciled product counts: catalogue == embedded + quarantined; servable == embedded."""

    catalogue: int
    embedded: int
    quarantined: int
    indexed: int
    tombstoned: int = 0
    servable: int


class IndexManifest(Frozen):
    """One index version: the release, with everything needed to answer queries. File name: `manifest.json`."""

    format: Literal[1] = 1
    id: str
    created_at: str
    encoder: EncoderRef
    snapshot: SnapshotRef
    shards: int
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

    def files(self) -> list[FileRef]:
        """Every file of the release, except the encoder's."""
        parts = [f for s in self.segments for f in (s.index, s.table) if f is not None]
        return [*parts, self.golden]

    def digest(self) -> str:
        """Hash of the content (16 hex digits): processes with equal digests hold the same index version."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


ManifestT = TypeVar("ManifestT", IndexManifest, EncoderManifest)


def read_manifest(path: Path, kind: type[ManifestT]) -> ManifestT:
    """Reads a manifest from a JSON file. Raises ContractError with its first validation error."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ContractError(f"{path}: no such manifest") from None
    except ValidationError as error:
        raise ContractError(f"{path}: not a {kind.__name__}: {first_error(error, 'the file')}") from None


def fingerprint(onnx_sha256: str, preprocess: PreprocessSpec) -> str:
    """sha256 over an ONNX file's sha256 and its preprocessing spec: identifies what made a vector."""
    spec = json.dumps(preprocess.model_dump(), sort_keys=True)
    return hashlib.sha256(f"{onnx_sha256}\n{spec}".encode()).hexdigest()
