"""File access by uri, the same for local folders and s3://. Writes are atomic.

S3 settings come from the environment as for every AWS tool (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …); an endpoint implies
path-style addresses, as MinIO and moto want, unless AWS_S3_ADDRESSING_STYLE is "virtual".
"""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from serving.contract import addresses
from tasks.errors import VitrineError

CHUNK_BYTES = 1 << 20


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
    """Joins path segments to a uri."""
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return fs.get_file_info(path).type == pafs.FileType.File


def list_files(uri: str, suffix: str = "", recursive: bool = False) -> list[str]:
    """Uris of the files below a folder, sorted; [] when the folder does not exist."""
    fs, path = filesystem(uri)
    found = fs.get_file_info(pafs.FileSelector(path, recursive=recursive, allow_not_found=True))
    scheme = "s3://" if uri.startswith("s3://") else ""
    return sorted(scheme + f.path for f in found if f.type == pafs.FileType.File and f.path.endswith(suffix))


def list_folders(uri: str) -> list[str]:
    """Uris of a folder's direct subfolders, sorted; [] when the folder does not exist."""
    fs, path = filesystem(uri)
    found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    scheme = "s3://" if uri.startswith("s3://") else ""
    return sorted(scheme + f.path for f in found if f.type == pafs.FileType.Directory)


def disk_usage(uri: str) -> tuple[int, float]:
    """Bytes of a file or folder, and the modification time (epoch seconds) of its newest file."""
    fs, path = filesystem(uri)
    info = fs.get_file_info(path)
    inside = fs.get_file_info(pafs.FileSelector(path, recursive=True)) if info.type == pafs.FileType.Directory else [info]
    files = [f for f in inside if f.type == pafs.FileType.File]
    return sum(f.size for f in files), max((f.mtime_ns / 1e9 for f in files), default=0.0)


def size(uri: str) -> int:
    fs, path = filesystem(uri)
    return fs.get_file_info(path).size


def validator(uri: str) -> str | None:
    """A token that changes with the content: size and modification time of a file, size and ETag of an object. None without one."""
    fs, path = filesystem(uri)
    try:
        if isinstance(fs, pafs.S3FileSystem):
            with fs.open_input_stream(path) as stream:  # asks for the object's head, reads nothing
                told = stream.metadata()
            return f"{told['Content-Length'].decode()}-{told['ETag'].decode()}"
        info = fs.get_file_info(path)
    except OSError:
        return None
    return f"{info.size}-{info.mtime_ns}" if info.type == pafs.FileType.File else None


def read_bytes(uri: str) -> bytes:
    fs, path = filesystem(uri)
    with fs.open_input_stream(path) as stream:
        return stream.read()


def read_verified(uri: str, checksum: str, remedy: str = "take it from a copy, or run the step that made it again") -> pa.Buffer:
    """A file's bytes, verified against `checksum` (hex sha256). Raises VitrineError naming the file and the remedy."""
    fs, path = filesystem(uri)
    found = ""
    for _ in range(2):  # an answer of the store that broke off looks like a damaged file
        try:
            with fs.open_input_file(path) as stream:
                data = stream.read_buffer()
        except FileNotFoundError:
            raise VitrineError(f"{uri}: the file is missing; {remedy}") from None
        found = hashlib.sha256(data).hexdigest()
        if found == checksum:
            return data
    raise VitrineError(f"{uri}: its sha256 is {found[:12]}… where {checksum[:12]}… was written: it is corrupt; {remedy}")


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A whole Parquet file as a table."""
    fs, path = filesystem(uri)
    with fs.open_input_file(path) as stream:
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
            with pa.OSFile(spool.name, "rb") as source, fs.open_output_stream(path) as target:
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
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


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    with writer(uri) as stream:
        stream.write(data)


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, json.dumps(value, indent=1, sort_keys=True).encode())


def put_file(path: Path, uri: str) -> None:
    """Copies a file of this machine to a uri, atomically."""
    with path.open("rb") as source, writer(uri) as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def local_copy(uri: str, folder: Path) -> Path:
    """A file as a path of this machine: where it is, or fetched into `folder` when it is an object of s3://."""
    if not uri.startswith("s3://"):
        return local_path(uri)
    fs, source = filesystem(uri)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / uri.rsplit("/", 1)[1]
    with fs.open_input_stream(source) as stream, path.open("wb") as target:
        shutil.copyfileobj(stream, target, CHUNK_BYTES)
    return path


def delete(uri: str) -> None:
    fs, path = filesystem(uri)
    if exists(uri):
        fs.delete_file(path)


def delete_folder(uri: str) -> None:
    """Removes a folder recursively; no error when it does not exist."""
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        fs.delete_dir(path)


def sha256(uri: str) -> str:
    """Hex sha256 of a file's bytes, streamed."""
    fs, path = filesystem(uri)
    digest = hashlib.sha256()
    with fs.open_input_stream(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
