"""Reorders a graph's rows so that neighbours lie close in memory, for locality of reference during search.

Kept because without it a whole search of a graph takes 1.13 to 1.19 of the time for ten (`hnsw_sq8`, 1M x 512, ef 64) and 1.16 for 500
(ef 512), one thread, median of seven pairs in turns; 1.27 to 1.30 at 128-d (docs/decisions/0072).
"""

from typing import Any

import numpy as np

from serving.index.refine import StoredVectors
from tasks.progress import Progress

GROUPS, GROUP_ROWS = 1024, 64
"""At most so many groups, of so many rows at least: 4,096 take five times as long, for searches 1.03 times as fast
(docs/decisions/0072)."""
ROUNDS, SAMPLED = 4, 32
"""Rounds of k-means, and rows a group that it sees."""
BLOCK = 50_000


def group(index: Any, of: str = "", seed: int = 0) -> np.ndarray | None:
    """Renumbers a graph's rows for locality: new row i was row order[i]. None when nothing changed.

    Its links and what it finds stay the same. Other indexes are left alone: what a list holds lies together in any case. `of` is
    said beside the progress.
    """
    import faiss

    view = faiss.downcast_index(index)
    groups = min(GROUPS, index.ntotal // GROUP_ROWS)
    if not isinstance(view, faiss.IndexHNSW) or groups < 2:
        return None
    stored = StoredVectors(index)
    seen = stored.vectors(np.linspace(0, index.ntotal - 1, groups * SAMPLED).astype(np.int64))
    means = faiss.Kmeans(
        index.d, groups, niter=ROUNDS, seed=seed, spherical=True, min_points_per_centroid=1, max_points_per_centroid=SAMPLED
    )
    means.train(seen)
    found = np.empty(index.ntotal, np.int64)
    with Progress(f"group rows{of}", index.ntotal, "rows") as progress:
        for start in range(0, index.ntotal, BLOCK):
            rows = np.arange(start, min(start + BLOCK, index.ntotal))
            found[rows] = means.index.search(stored.vectors(rows), 1)[1][:, 0]
            progress.add(len(rows))
    order = np.argsort(found, kind="stable")
    view.permute_entries(order)
    return order
