"""The families of other engines: what each builds in a collection or file, and the search parameters that are tuned.

`factory` gives what the engine's module in tasks/index makes the index from. Costs are for the order of trials alone; as everywhere,
what is measured decides.
"""

from tasks.errors import VitrineError
from tasks.index.families import (
    ALL_FAMILIES,
    EFS,
    EIGHT_BITS,
    FAISS,
    FAMILIES,
    FINE,
    REFINED,
    Family,
    graph_cost,
    probe_grid,
    scan_cost,
)

SCANN = "scann"
IN_PROCESS = (FAISS, SCANN)
"""Engines whose index is a file of the version, which replicas search themselves."""
NPROBES = (4, 8, 16, 32, 64, 128, 256)


def _hnsw(engine: str, factory: str, width: float = 4) -> Family:
    """A graph of M 16 over vectors of `width` bytes a dimension."""
    return Family(
        f"{engine}_hnsw", lambda d, n: factory, EFS, lambda d: width * d + 8 * 16 + 20, graph_cost, trained=False,
        reach=((EIGHT_BITS, {"ef": 128}), (FINE, {"ef": 512})), build_s=1500.0, engine=engine,
    )  # fmt: skip


def _ivf(engine: str, name: str) -> Family:
    lists = {"ivfflat": "lists", "IVF_FLAT": "nlist"}[name]
    return Family(
        f"{engine}_{name.lower()}", lambda d, n: f"{name},{lists}={n}", probe_grid(*NPROBES), lambda d: 4 * d + 16, scan_cost("flat"),
        trained=False, reach=((EIGHT_BITS, {"nprobe": 128}), (FINE, {"nprobe": 256})), build_s=300.0, engine=engine,
    )  # fmt: skip


ENGINE_FAMILIES = {
    f.name: f for f in (
        _hnsw("pgvector", "hnsw,m=16,ef_construction=100"), _ivf("pgvector", "ivfflat"),
        _hnsw("milvus", "HNSW,M=16,efConstruction=100"), _ivf("milvus", "IVF_FLAT"),
        _hnsw("qdrant", "HNSW,m=16,ef_construct=100"), _hnsw("weaviate", "HNSW,max_connections=32,ef_construction=100"),
        Family(
            "pinecone", lambda d, n: "pinecone", ({},), lambda d: 4 * d, lambda p, c, r: 0.0, trained=False, engine="pinecone",
        ),
        Family(
            "scann_tree_ah", lambda d, n: "tree,ah", REFINED, lambda d: 4.25 * d + 4, scan_cost("fs", "fp16"), trained=False,
            reach=((0.96, {"nprobe": 128, "k_factor": 2}),), build_s=245.0, engine=SCANN,
        ),
    )
}  # fmt: skip
ENGINES = tuple(dict.fromkeys(f.engine for f in ENGINE_FAMILIES.values()))
KNOWN_FAMILIES = {**ALL_FAMILIES, **ENGINE_FAMILIES}
"""Every family that a segment of a version may have."""


def engine_family(engine: str, name: str = "") -> Family:
    """The family `name` of an engine, or its first. Raises VitrineError for an unknown engine or another's family."""
    own = {f.name: f for f in ENGINE_FAMILIES.values() if f.engine == engine}
    if not own:
        raise VitrineError(f"VITRINE_ENGINE={engine!r} is not known; choose one of faiss, {', '.join(ENGINES)}")
    if name and name not in own:
        raise VitrineError(f"{engine} has no index family {name!r} (VITRINE_INDEX_FAMILY); it has {', '.join(own)}")
    return own[name] if name else next(iter(own.values()))


def buildable(name: str) -> Family:
    """A family that can be built, of FAISS or of another engine."""
    return FAMILIES[name] if name in FAMILIES else ENGINE_FAMILIES[name]
