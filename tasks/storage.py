"""File access by uri, the same for local folders and s3://. Writes are atomic, and what is read is whole.
An object store that is away, overloaded, or whose answer breaks off, is asked again (PAUSES_S); then StoreAway is raised, which is no
OSError: what is wrong with the store must not be taken for what is wrong with a file.

S3 settings come from the environment as for every AWS tool (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …); an endpoint implies
path-style addresses, as MinIO and moto want, unless AWS_S3_ADDRESSING_STYLE is "virtual".
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from serving.contract import addresses
from tasks.errors import StoreAway, VitrineError

CHUNK_BYTES = 1 << 20
PAUSES_S = (0.2, 1.0, 3.0)
"""Pauses before an object store is asked again. Arrow's client has made three attempts of its own by then, unless an answer broke off or
had a status without an error that it knows."""
AWAY = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|REQUEST_TIMEOUT"
    r"|UNKNOWN \(HTTP status (5\d\d|429|408)\))[^:]*"
)
"""What Arrow says of a store that may answer in a moment."""

P = ParamSpec("P")
T = TypeVar("T")


class _BrokenOff(OSError):
    """An answer that ended before its end."""


def _patient(ask: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
    """Asks an object store again that does not answer, or not to the end. Raises StoreAway when it never does."""

    def ask_once(uri: str, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return ask(uri, *args, **kwargs)
        except OSError as error:
            raise_if_away(uri, error)
            raise

    @wraps(ask)
    def asked(uri: str, *args: P.args, **kwargs: P.kwargs) -> T:
        for pause_s in PAUSES_S:
            with suppress(StoreAway):
                return ask_once(uri, *args, **kwargs)
            time.sleep(pause_s)
        return ask_once(uri, *args, **kwargs)

    return asked


def raise_if_away(uri: str, error: Exception) -> None:
    """Raises StoreAway when an error of Arrow's, met while it read `uri`, is the object store's and may pass."""
    if not (isinstance(error, OSError) and uri.startswith("s3://")):
        return
    found = AWAY.search(str(error))
    if found or isinstance(error, _BrokenOff):
        why = found[0].strip() if found else str(error)
        raise StoreAway(f"{uri}: the object store does not answer as it should ({why}); try again later") from error


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The Arrow file system of a uri (a plain path, file:// or s3://) and the path inside it."""
    if uri.startswith("s3://"):
        endpoint, region = s3_endpoint_and_region()
        options: dict[str, Any] = {"region": region or "us-east-1"}
        if endpoint:
            scheme, _, host = endpoint.partition("://")
            options |= {"endpoint_override": host, "scheme": scheme}
            options["force_virtual_addressing"] = os.environ.get("AWS_S3_ADDRESSING_STYLE") == "virtual"
        return _object_store(os.getpid(), **options), uri[len("s3://") :]
    return pafs.LocalFileSystem(), str(local_path(uri))


def s3_endpoint_and_region() -> tuple[str, str]:
    """The environment's endpoint address and region, "" where it has none."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return endpoint, os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""


@cache
def _object_store(_process: int, **options: Any) -> pafs.FileSystem:
    """One client per process and setting: it pools connections and must not be shared across a fork."""
    return pafs.S3FileSystem(**options)


def local_path(uri: str) -> Path:
    """The absolute path of a local uri; a file:// uri is percent-decoded."""
    return addresses.local_path(uri).absolute()


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


@_patient
def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return fs.get_file_info(path).type == pafs.FileType.File


@_patient
def list_files(uri: str, suffix: str = "", recursive: bool = False) -> list[str]:
    """Uris of the files below a folder, sorted; [] when the folder does not exist."""
    fs, path = filesystem(uri)
    found = fs.get_file_info(pafs.FileSelector(path, recursive=recursive, allow_not_found=True))
    scheme = "s3://" if uri.startswith("s3://") else ""
    return sorted(scheme + f.path for f in found if f.type == pafs.FileType.File and f.path.endswith(suffix))


@_patient
def list_folders(uri: str) -> list[str]:
    """Uris of a folder's direct subfolders, sorted; [] when the folder does not exist."""
    fs, path = filesystem(uri)
    found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    scheme = "s3://" if uri.startswith("s3://") else ""
    return sorted(scheme + f.path for f in found if f.type == pafs.FileType.Directory)


@_patient
def disk_usage(uri: str) -> tuple[int, float]:
    """Bytes of a file or folder, and the modification time (epoch seconds) of its newest file."""
    fs, path = filesystem(uri)
    info = fs.get_file_info(path)
    inside = fs.get_file_info(pafs.FileSelector(path, recursive=True)) if info.type == pafs.FileType.Directory else [info]
    files = [f for f in inside if f.type == pafs.FileType.File]
    return sum(f.size for f in files), max((f.mtime_ns / 1e9 for f in files), default=0.0)


@_patient
def size(uri: str) -> int:
    fs, path = filesystem(uri)
    return fs.get_file_info(path).size


def validator(uri: str) -> str | None:
    """A token that changes with the content: size and modification time of a file, size and ETag of an object. None without one."""
    fs, path = filesystem(uri)
    try:
        if isinstance(fs, pafs.S3FileSystem):
            with _open(uri) as stream:  # asks for the object's head, reads nothing
                return f"{stream.size()}-{stream.metadata()['ETag'].decode()}"
        info = fs.get_file_info(path)
    except OSError:
        return None
    return f"{info.size}-{info.mtime_ns}" if info.type == pafs.FileType.File else None


@_patient
def read_bytes(uri: str) -> bytes:
    with _open(uri) as stream:
        data = stream.read()
        _check_whole(len(data), stream)
        return data


@_patient
def open_input(uri: str) -> pa.NativeFile:
    """A file to be read in any order."""
    return _open(uri)


def _open(uri: str) -> pa.NativeFile:
    """One attempt of `open_input`. Raises _BrokenOff when an object's head came without its end, so that its length is not known."""
    fs, path = filesystem(uri)
    stream = fs.open_input_file(path)
    if isinstance(fs, pafs.S3FileSystem) and "ETag" not in stream.metadata():
        raise _BrokenOff("its answer broke off in the head")
    return stream


def _check_whole(length: int, stream: pa.NativeFile) -> None:
    """Raises _BrokenOff when `length` bytes are not all of a stream."""
    if length < stream.size():
        raise _BrokenOff(f"its answer broke off after {length} of {stream.size()} bytes")


def read_verified(uri: str, checksum: str, remedy: str = "take it from a copy, or run the step that made it again") -> pa.Buffer:
    """A file's bytes, verified against `checksum` (hex sha256). Raises VitrineError naming the file and the remedy."""
    try:
        data = read_bytes(uri)
    except FileNotFoundError:
        raise VitrineError(f"{uri}: the file is missing; {remedy}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != checksum:
        raise VitrineError(f"{uri}: its sha256 is {found[:12]}… where {checksum[:12]}… was written: it is corrupt; {remedy}")
    return pa.py_buffer(data)


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


@_patient
def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A whole Parquet file as a table."""
    with _open(uri) as stream:
        return pq.read_table(stream, columns=columns)


@contextmanager
def writer(uri: str) -> Iterator[pa.NativeFile]:
    """An output stream whose file appears at `uri` atomically when the block succeeds, and never when it fails."""
    fs, path = filesystem(uri)
    if isinstance(fs, pafs.S3FileSystem):
        # An S3 object appears when its upload completes; a stream that is dropped would complete it, so spool it first.
        with tempfile.NamedTemporaryFile() as spool:
            with pa.OSFile(spool.name, "wb") as stream:
                yield stream
            _upload(uri, spool.name)
        return
    target_path = Path(path)
    target_path.parent.mkdir(parents=True, exist_ok=True)
    temporary = target_path.with_name(f".{target_path.name}.{secrets.token_hex(6)}.tmp")  # threads may write the same file
    try:
        with pa.OSFile(str(temporary), "wb") as stream:
            yield stream
        descriptor = os.open(temporary, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        temporary.replace(target_path)
    finally:
        temporary.unlink(missing_ok=True)


@_patient
def _upload(uri: str, file: str) -> None:
    fs, path = filesystem(uri)
    with pa.OSFile(file, "rb") as source, fs.open_output_stream(path) as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    with writer(uri) as stream:
        stream.write(data)


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, json.dumps(value, indent=1, sort_keys=True).encode())


def put_file(path: Path, uri: str) -> None:
    """Copies a file of this machine to a uri, atomically."""
    with path.open("rb") as source, writer(uri) as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


@_patient
def local_copy(uri: str, folder: Path) -> Path:
    """A file as a path of this machine: where it is, or fetched into `folder` when it is an object of s3://."""
    if not uri.startswith("s3://"):
        return local_path(uri)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / uri.rsplit("/", 1)[1]
    with _open(uri) as stream, path.open("wb") as target:
        shutil.copyfileobj(stream, target, CHUNK_BYTES)
        _check_whole(target.tell(), stream)
    return path


@_patient
def delete(uri: str) -> None:
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type == pafs.FileType.File:
        fs.delete_file(path)


@_patient
def delete_folder(uri: str) -> None:
    """Removes a folder recursively; no error when it does not exist."""
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        fs.delete_dir(path)


@_patient
def sha256(uri: str) -> str:
    """Hex sha256 of a file's bytes, streamed."""
    with _open(uri) as stream:
        digest = hashlib.file_digest(stream, "sha256")
        _check_whole(stream.tell(), stream)
    return digest.hexdigest()
