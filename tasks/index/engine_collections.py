"""Collections of other engines as the pipeline makes them: created, filled, completed, dropped; and what the store records of them.

A collection holds the base vectors of one version under the ids 0..rows-1: those of shard 0 in the order of its vectors, then those of
shard 1, and so on. Its name follows from the vectors and the index that it holds, since it is made before its version has a number.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import numpy as np

from serving.index.collection import Endpoint, address_fault
from tasks import storage
from tasks.errors import VitrineError
from tasks.records import Record

PREFIX = "vitrine_"
ALIAS = "vitrine_live"
"""The name under which people find the live version's collection with other tools; nothing of ours reads it."""
MODULES = {
    "pgvector": "tasks.index.pgvector_collections",
    "milvus": "tasks.index.milvus_collections",
    "qdrant": "tasks.index.qdrant_collections",
    "weaviate": "tasks.index.weaviate_collections",
    "pinecone": "tasks.index.pinecone_collections",
}
FOLDER = "collections"
RECORD = "collection.json"
BUILD_LIMIT_S, LOAD_LIMIT_S = 4 * 3600.0, 3600.0
"""How long an engine may take to build the index of one collection, and then to load it: together less than the task `tune` may."""


class Collections(Protocol):
    """The collections of one engine. Every method may be repeated; each raises the engine's own errors."""

    def create(self, name: str, dim: int, factory: str) -> None:
        """Creates an empty collection unless it is there."""
        ...

    def put(self, name: str, first: int, vectors: np.ndarray) -> None:
        """Stores vectors (n, d) float32 under the ids first..first+n-1, in place of what is there."""
        ...

    def count(self, name: str, first: int, stop: int) -> int:
        """The exact number of ids in first..stop-1; 0 where there is no such collection."""
        ...

    def complete(self, name: str, factory: str, rows: int) -> None:
        """Builds the index of a filled collection and makes it ready to be searched."""
        ...

    def drop(self, name: str) -> None:
        """Deletes a collection, if it is there."""
        ...

    def point(self, alias: str, name: str) -> None:
        """Makes `alias` another name of the collection."""
        ...


@dataclass(frozen=True)
class CollectionRecord(Record):
    """What the store knows of a collection, written before it is created, so that it is always found again."""

    engine: str
    name: str
    run_key: str


def requests(first: int, vectors: np.ndarray, rows: int) -> Iterator[tuple[range, list[list[float]]]]:
    """Vectors (n, d) under the ids from `first` on, cut into requests of at most so many `rows`: their ids, and the vectors as numbers."""
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows].tolist()
        yield range(first + start, first + start + len(block)), block


def wait_while(pending: Callable[[], str], limit_s: float = BUILD_LIMIT_S, look_s: float = 1.0, looks: int = 1) -> None:
    """Asks `pending` every `look_s` seconds until it says "" `looks` times in a row.

    Raises VitrineError with the sentence that it says instead once `limit_s` are over.
    """
    limit, done = time.monotonic() + limit_s, 0
    while True:
        why = pending()
        done = 0 if why else done + 1
        if done == looks:
            return
        if why and time.monotonic() > limit:
            raise VitrineError(f"{why} after {limit_s:.0f} s")
        time.sleep(look_s)


def open_collections(engine: str, endpoint: Endpoint) -> Collections:
    """The collections of an engine. Raises VitrineError where it is unknown, not installed, or has no address or a wrong one."""
    if engine not in MODULES:
        raise VitrineError(f"VITRINE_ENGINE={engine!r} is not known; faiss, {', '.join(MODULES)} are")
    if not endpoint.address:
        raise VitrineError(f"VITRINE_ENGINE={engine} needs VITRINE_ENGINE_ADDRESS, the address where it is reached")
    if fault := address_fault(engine, endpoint.address):
        raise VitrineError(fault)
    try:
        opened: Collections = import_module(MODULES[engine]).open_collections(endpoint)
    except ModuleNotFoundError as error:
        raise VitrineError(f"{engine} needs the package {error.name}: install vitrine[{engine}]") from None
    return opened


def collection_name(vectors_sha256: str, factory: str) -> str:
    """The name of the collection of these vectors (their commit's sha256) under this index."""
    return PREFIX + hashlib.sha256(f"{vectors_sha256}\n{factory}".encode()).hexdigest()[:16]


def folder_of(store: str, name: str) -> str:
    """The folder in the store of a collection's record and of what was uploaded so far."""
    return storage.join(store, FOLDER, name)


def record_collection(store: str, record: CollectionRecord) -> None:
    """Writes the record of a collection that is about to be created."""
    storage.write_json(storage.join(folder_of(store, record.name), RECORD), record.to_json())


def recorded_collection(folder: str) -> CollectionRecord:
    """The record in a collection's folder."""
    return CollectionRecord.from_json(storage.read_json(storage.join(folder, RECORD)))


def recorded_collections(store: str) -> dict[str, CollectionRecord]:
    """The records of all collections made from this store, by their folders."""
    folders = storage.list_folders(storage.join(store, FOLDER))
    return {folder: recorded_collection(folder) for folder in folders if storage.exists(storage.join(folder, RECORD))}
