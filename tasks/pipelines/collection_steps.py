"""What the steps of rebuild_index do where another engine holds the base vectors: its collection is begun, filled, and completed."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from serving.contract.addresses import error_line, hide_secrets
from serving.contract.manifest import EncoderRef
from serving.contract.provenance import EngineRef
from serving.index.collection import open_collection
from tasks.embed.job import EmbedResult, embedding_commit
from tasks.errors import ServiceAway, VitrineError
from tasks.index.build import BuiltShard
from tasks.index.engine_collections import ALIAS, PREFIX, CollectionRecord, collection_name, open_collections, record_collection
from tasks.index.engine_families import IN_PROCESS, buildable, engine_family
from tasks.index.families import FAISS
from tasks.index.template import Template
from tasks.index.upload import Upload, check_sample, whole_digest
from tasks.index.vectors import shard_counts
from tasks.registry import INDEX_MODEL, Registry
from tasks.settings import Settings

log = logging.getLogger(__name__)


def check_engine(chosen: Settings) -> None:
    """Raises VitrineError where the engine of the settings is unknown, not installed, or does not answer: before hours of embedding."""
    if chosen.engine == FAISS:
        return
    engine_family(chosen.engine, chosen.index_family)
    if chosen.engine in IN_PROCESS:
        if find_spec(chosen.engine) is None:
            raise VitrineError(f"{chosen.engine} needs the package {chosen.engine}: install vitrine[{chosen.engine}]")
        return
    try:
        open_collections(chosen.engine, chosen.endpoint).count(f"{PREFIX}none", 0, 1)
    except VitrineError:
        raise
    except Exception as error:  # every client has its own classes
        raise ServiceAway(
            f"VITRINE_ENGINE={chosen.engine} does not answer at VITRINE_ENGINE_ADDRESS: {error_line(error)}"
        ) from error


def begin_collection(template: Template, encoder: EncoderRef, embedded: EmbedResult, chosen: Settings, run_key: str) -> Template:
    """Creates the collection for all shards, recorded in the store first; a template of index files is given back as it is."""
    engine = buildable(template.family).engine
    if engine in IN_PROCESS:
        return template
    collections = open_collections(engine, chosen.endpoint)
    name = collection_name(
        embedding_commit(embedded, encoder.document_fingerprint).sha256, f"{template.family} {template.factory}"
    )
    record_collection(chosen.store_uri, CollectionRecord(engine, name, run_key))
    collections.create(name, template.dim, template.factory)
    log.info("%s: collection %s for %d vectors", engine, name, template.rows)
    return replace(template, collection=name)


def upload_of(template: Template, shard: int, chosen: Settings) -> Upload | None:
    """The upload of one shard into the template's collection; None where index files are built."""
    if not template.collection:
        return None
    collections = open_collections(buildable(template.family).engine, chosen.endpoint)
    counts, dim = shard_counts(template.vectors_uri, template.shards)
    collections.create(template.collection, dim, template.factory)  # somebody may have dropped it since
    return Upload(collections, chosen.store_uri, template.collection, shard, sum(counts[:shard]), counts[shard])


def holds_shard(built: BuiltShard, template: Template, chosen: Settings) -> bool:
    """Whether the collection still has every row of a shard that an earlier attempt uploaded; of index files always."""
    if not template.collection:
        return True
    counts, _ = shard_counts(template.vectors_uri, template.shards)
    first = sum(counts[: built.shard])
    collections = open_collections(buildable(template.family).engine, chosen.endpoint)
    return collections.count(template.collection, first, first + counts[built.shard]) == counts[built.shard]


def complete_collection(template: Template, shards: Sequence[BuiltShard], chosen: Settings) -> None:
    """Builds the index of the collection that all shards filled, and reconciles it: exact counts, and a sample of the vectors.

    Raises VitrineError where the collection does not hold what was uploaded.
    """
    ref = engine_ref(shards)
    if ref is None:
        return
    collections = open_collections(ref.name, chosen.endpoint)
    held = collections.count(ref.collection, 0, ref.rows)
    if held != ref.rows:
        raise VitrineError(
            f"{ref.name} holds {held} of the {ref.rows} rows uploaded to collection {ref.collection}: clear the tasks build_shard, so "
            "that they upload what is missing"
        )
    collections.complete(ref.collection, template.factory, ref.rows)
    collection = open_collection(ref.name, chosen.endpoint.patient(), ref.collection, template.dim)
    agreed = check_sample(collection, chosen.store_uri, ref.collection, len(shards))
    log.info(
        "%s: collection %s has its %d rows, and %d sampled vectors are as uploaded", ref.name, ref.collection, ref.rows, agreed
    )


def show_live(models: Registry, chosen: Settings) -> None:
    """Moves the engine's alias for people to the live version's collection. What stands in the way is logged, as nothing needs it."""
    live = models.alias(INDEX_MODEL, "live")
    ref = models.index_manifest(live.version).engine if live is not None else None
    if ref is None:
        return
    try:
        open_collections(ref.name, chosen.endpoint).point(ALIAS, ref.collection)
    except Exception as error:  # every client has its own classes
        log.warning("%s: the alias %s was not moved: %s", ref.name, ALIAS, hide_secrets(str(error)))


def engine_ref(shards: Sequence[BuiltShard]) -> EngineRef | None:
    """The manifest's record of the collection that these shards were uploaded to; None for index files."""
    if not shards or not shards[0].collection:
        return None
    digest = whole_digest([built.digest for built in sorted(shards, key=lambda s: s.shard)])
    engine = buildable(shards[0].family).engine
    return EngineRef(name=engine, collection=shards[0].collection, rows=sum(s.vectors for s in shards), digest=digest)
