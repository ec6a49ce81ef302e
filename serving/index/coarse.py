"""Search of preassigned inverted lists (the coarse quantiser's choice is an argument), and FAISS selectors for row masks."""

from typing import Any

import faiss
import numpy as np

from serving.index.engine import Mask
from serving.index.merge import Neighbors


def search_preassigned(index: Any, xq: np.ndarray, k: int, preassigned: Neighbors, mask: Mask | None) -> Neighbors:
    """k nearest rows of queries xq (nq, d) float32 within preassigned lists: `chosen` holds list ids as rows, and their similarities.

    Calls the C++ method: FAISS's Python wrapper of it takes no selector.
    """
    similarity, rows = np.empty((len(xq), k), np.float32), np.empty((len(xq), k), np.int64)
    xq, lists, closeness = (np.ascontiguousarray(a) for a in (xq, preassigned.rows, preassigned.similarity))
    pointers = [faiss.swig_ptr(a) for a in (xq, lists, closeness, similarity, rows)]
    params = faiss.SearchParametersIVF(nprobe=lists.shape[1], **({} if mask is None else {"sel": selector(mask)}))
    index.search_preassigned_c(len(xq), pointers[0], k, *pointers[1:], False, params)
    return Neighbors(similarity, rows)


def selector(mask: Mask) -> Any:
    """The mask as a FAISS IDSelector."""
    preassigned = faiss.IDSelectorBitmap(len(mask.allowed), faiss.swig_ptr(mask.bits))
    preassigned.bits = mask.bits  # keeps the bitmap alive as long as the selector
    return preassigned
