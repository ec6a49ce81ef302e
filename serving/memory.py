"""Memory that a freed version leaves behind: allocators keep it for later, a replica gives it back."""

import ctypes
import logging

log = logging.getLogger(__name__)


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
