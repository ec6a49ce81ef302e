"""Searching the inverted lists of an IVF index that were chosen beforehand, and the rows that count, as FAISS wants them."""

from typing import Any

import faiss
import numpy as np

from serving.index.engine import Mask
from serving.index.merge import Found


def search_lists(index: Any, xq: np.ndarray, k: int, chosen: Found, mask: Mask | None) -> Found:
    """The k nearest rows of queries xq (nq, d) float32 in the lists `chosen` for each; FAISS's own wrapper takes no selector."""
    similarity, rows = np.empty((len(xq), k), np.float32), np.empty((len(xq), k), np.int64)
    xq, lists, closeness = (np.ascontiguousarray(a) for a in (xq, chosen.rows, chosen.similarity))
    pointers = [faiss.swig_ptr(a) for a in (xq, lists, closeness, similarity, rows)]
    params = faiss.SearchParametersIVF(nprobe=lists.shape[1], **({} if mask is None else {"sel": selector(mask)}))
    index.search_preassigned_c(len(xq), pointers[0], k, *pointers[1:], False, params)
    return Found(similarity, rows)


def selector(mask: Mask) -> Any:
    """FAISS's selector of the rows that count."""
    chosen = faiss.IDSelectorBitmap(len(mask.allowed), faiss.swig_ptr(mask.bits))
    chosen.bits = mask.bits  # keeps the bitmap alive as long as the selector
    return chosen
