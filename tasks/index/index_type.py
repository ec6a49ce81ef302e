"""The type of a FAISS index file, for comparison with its family's."""

from typing import Any

import faiss

from tasks.index.families import ALL_FAMILIES
from tasks.index.template import make_index

FEW_LISTS = 16


def index_type(index: Any) -> tuple[object, ...]:
    """The stages of an index, their vector storage, and a graph's link count; not list or code counts, which follow the rows."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return "refined", *index_type(index.base_index), *index_type(index.refine_index)
    if isinstance(index, faiss.IndexPreTransform):
        return "rotated", *index_type(index.index)
    if isinstance(index, faiss.IndexHNSW):
        return "graph", index.hnsw.nb_neighbors(0), *index_type(index.storage)
    if isinstance(index, faiss.IndexScalarQuantizer):
        return "scalar", index.sq.qtype
    return ("flat",) if isinstance(index, faiss.IndexFlat) else (type(index).__name__,)


def family_index_type(family: str, dim: int) -> tuple[object, ...]:
    """The index type that a family builds or built."""
    made = make_index(dim, ALL_FAMILIES[family].factory(dim, FEW_LISTS))
    return index_type(made)
