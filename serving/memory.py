"""Memory that is no longer used: allocators keep it for later, a replica gives it back."""

import ctypes
import logging

log = logging.getLogger(__name__)

M_MMAP_THRESHOLD = -3
"""mallopt's name for it in glibc's malloc.h."""
LARGE = 1 << 20


def keep_large_apart() -> None:
    """Blocks of a megabyte and more come from the system one by one, and go back to it when they are freed.

    glibc begins that way and gives it up with the first of them that is freed: from then on bodies of megabytes and encoders'
    weights lie between what lives long, and leave holes (docs/decisions/0067).
    """
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
    except AttributeError:
        log.debug("this C library has no mallopt")


def give_back() -> None:
    """Returns what Arrow's and the C library's allocators hold unused to the system. A few milliseconds; safe at any time."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # not glibc
        log.debug("this C library has no malloc_trim")


def resident_bytes() -> int:
    """What this process occupies of the machine's memory; 0 where the system does not tell (it is read from /proc)."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * 4096
    except OSError:
        return 0
