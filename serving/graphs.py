"""How FAISS remembers which rows a search in a graph has met."""

import ctypes
import logging
from functools import cache

from faiss import swigfaiss

log = logging.getLogger(__name__)

ROWS_IN_BYTES = 10_000_000
"""Up to so many rows, a byte each (of every thread that searches); beyond that, a set of those that were met."""
THRESHOLD = "_ZN5faiss31visited_table_hashset_thresholdE"
"""`size_t faiss::visited_table_hashset_threshold` as the linker knows it: Python is not given it."""


@cache
def remember_in_bytes() -> bool:
    """Lets all graphs of this process keep bytes, not a set, from FAISS's 500,000 rows up to ROWS_IN_BYTES.

    The answers are the same, in three quarters of the time (docs/decisions/0073). False, and FAISS left as it is, where it has no
    such threshold.
    """
    try:
        threshold().value = ROWS_IN_BYTES
    except (OSError, ValueError) as error:
        log.debug("FAISS keeps its own threshold: %s", error)
        return False
    return True


def threshold() -> ctypes.c_size_t:
    """FAISS's own variable. Raises OSError or ValueError where it has none."""
    return ctypes.c_size_t.in_dll(ctypes.CDLL(swigfaiss._swigfaiss.__file__), THRESHOLD)
