"""Checksummed file references, verification, and atomic writes."""

import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

CHUNK_BYTES = 1 << 20
DESCRIPTORS = Path("/proc/self/fd")
"""Where Linux shows a process's open files as paths. Elsewhere a verified file is opened by its name."""


class ContractError(Exception):
    """A file, manifest or model that is not what its release says it is. The message names it and what to do."""


class FrozenModel(BaseModel):
    """Base of every record in the contract: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def first_error(error: ValidationError, whole: str = "") -> str:
    """The first validation error as "location: message"; `whole` names the record itself."""
    first = error.errors()[0]
    return f"{'.'.join(str(p) for p in first['loc']) or whole}: {first['msg'].removeprefix('Value error, ')}"


class FileRef(FrozenModel):
    """Reference to an immutable file: its path, size and sha256.

    `run_id` is the MLflow run whose artifact it is (empty: `path` is relative to the manifest that names it).
    """

    run_id: str = ""
    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def describe(path: Path, name: str, run_id: str = "") -> FileRef:
    """The reference to the file at `path`, called `name` inside its release."""
    return FileRef(run_id=run_id, path=name, sha256=sha256_file(path), bytes=path.stat().st_size)


def verify(path: Path, ref: FileRef) -> Path:
    """The path itself, once its size and sha256 equal the reference's. Raises ContractError naming what differs."""
    if not path.is_file():
        raise ContractError(f"{ref.path}: the file is missing ({path}); fetch the release again")
    size = path.stat().st_size
    if size != ref.bytes:
        raise ContractError(f"{ref.path}: {size} bytes where the manifest says {ref.bytes}; the file is truncated or replaced")
    found = sha256_file(path)
    if found != ref.sha256:
        raise ContractError(f"{ref.path}: sha256 {found[:12]}… where the manifest says {ref.sha256[:12]}…; the file is corrupt")
    return path


class OpenPath(PosixPath):
    """The path of an open descriptor; opening it gives the same file, whatever lies at the old path by now.

    The descriptor is closed when the path is dropped, so hand it to what opens it and keep it no longer. `name` is that of the file.
    """

    label: str

    @classmethod
    def of(cls, descriptor: int, label: str) -> "OpenPath":
        found = cls(DESCRIPTORS / str(descriptor))
        found.label = label
        weakref.finalize(found, os.close, descriptor)
        return found

    @property
    def name(self) -> str:
        return self.label


def open_verified(path: Path, ref: FileRef) -> Path:
    """As `verify`, but gives a path to the very file that was hashed: nobody can put another there before it is opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is refused, not waited for
    except OSError:
        return verify(path, ref)  # says what is wrong
    held = OpenPath.of(descriptor, path.name)
    verify(held if DESCRIPTORS.is_dir() else path, ref)
    return held if DESCRIPTORS.is_dir() else path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary path beside `path`, then syncs it and renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
