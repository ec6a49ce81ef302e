"""Built shards in the store: the step that builds one leaves it there for the steps that tune and register the version."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from serving.contract.files import FileRef, verify
from tasks import storage
from tasks.index.build import BUILT, BuiltShard, source_of
from tasks.index.template import Template
from tasks.records import RecordError


def store_shard(built: BuiltShard, uri: str) -> BuiltShard:
    """Copies a shard's files to the folder `uri`, its record last; returns the record of the copy."""
    for ref in built.files:
        storage.put_file(Path(built.uri) / ref.path, storage.join(uri, ref.path))
    stored = replace(built, uri=uri)
    storage.write_json(storage.join(uri, BUILT), stored.to_json())
    return stored


def stored_shard(uri: str, vectors_uri: str, snapshot_uri: str, template: Template) -> BuiltShard | None:
    """The shard that an earlier attempt built from the same inputs and stored at `uri`; None when it is not whole."""
    if not storage.exists(storage.join(uri, BUILT)):
        return None
    try:
        found = BuiltShard.from_json(storage.read_json(storage.join(uri, BUILT)) | {"uri": uri})
    except RecordError:
        return None
    files = [(storage.join(uri, ref.path), ref.sha256) for ref in found.files]
    whole = all(storage.exists(file) and storage.sha256(file) == sha256 for file, sha256 in files)
    return found if whole and found.source == source_of(vectors_uri, snapshot_uri, template) else None


def locate_shards(shards: Iterable[BuiltShard], folder: Path) -> Callable[[FileRef], Path]:
    """Locates the files of stored shards, and files of `folder`, by name; each is verified.

    A file of a store that is a local folder is read where it is; one of s3:// is fetched into `folder`. Raises ContractError for a
    file that is damaged or gone.
    """
    uris = {ref.path: storage.join(built.uri, ref.path) for built in shards for ref in built.files}

    @cache
    def path_of(name: str) -> Path:
        return storage.local_copy(uris[name], folder) if name in uris else folder / name

    def locate(ref: FileRef) -> Path:
        return verify(path_of(Path(ref.path).name), ref)

    return locate
