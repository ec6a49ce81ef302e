"""Coarse quantisation in training and adding on GPUs or through faster equivalents; the resulting file is the same.

Most of the work of building an IVF index is comparing every vector with every centroid. A GPU does it where faiss-gpu sees one
(by cuVS where FAISS was built with it). On the CPU it is done through a flat quantiser even where searches go through a graph:
measured, 39 s a million vectors against 120-130 s (docs/decisions/0032).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


def ivf_view(index: Any) -> Any:
    """The IVF index inside a refined or rotated one; None when there is none. `index` must stay referenced."""
    import faiss

    from serving.index.faiss_engine import innermost

    view = innermost(index)
    return view if isinstance(view, faiss.IndexIVF) else None


@contextmanager
def fast_training(index: Any) -> Iterator[None]:
    """Within the block, IVF centroids are trained on the GPUs, if any."""
    import faiss

    lists = ivf_view(index)
    if lists is None or not gpus():
        yield
        return
    held = on_gpu(faiss.IndexFlat(lists.d, lists.metric_type))
    before, lists.clustering_index = lists.clustering_index, held
    try:
        yield
    finally:
        lists.clustering_index = before


@contextmanager
def fast_adding(index: Any) -> Iterator[None]:
    """Within the block, vectors are assigned through a flat quantiser of the same centroids: on GPUs, or instead of HNSW."""
    import faiss

    lists = ivf_view(index)
    kept = None if lists is None else lists.quantizer
    graph = isinstance(faiss.downcast_index(kept), faiss.IndexHNSW) if kept is not None else False
    if kept is None or not (graph or gpus()):
        yield
        return
    flat = faiss.IndexFlat(lists.d, lists.metric_type)
    flat.add(kept.reconstruct_n(0, lists.nlist))
    held = on_gpu(flat) if gpus() else flat
    lists.quantizer = held
    try:
        yield
    finally:
        lists.quantizer = kept


def gpus() -> int:
    """Number of GPUs that FAISS sees: 0 with faiss-cpu."""
    import faiss

    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def on_gpu(flat: Any) -> Any:
    """A flat index sharded over all GPUs, with cuVS if FAISS has it."""
    import faiss

    options = faiss.GpuMultipleClonerOptions()
    options.use_cuvs = "CUVS" in faiss.get_compile_options()
    log.info("coarse quantisation runs on %d GPUs%s", gpus(), " through cuVS" if options.use_cuvs else "")
    return faiss.index_cpu_to_all_gpus(flat, options)
