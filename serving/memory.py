"""Memory that is no longer used: allocators keep it for later, a replica gives it back."""

import ctypes
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

M_MMAP_THRESHOLD = -3
"""mallopt's name for it in glibc's malloc.h."""
LARGE = 1 << 20
PAGE, LARGE_PAGE = 4096, 2 << 20
MADV_COLLAPSE = 25
"""madvise's name for it in Linux's mman-common.h, from 6.1 on."""
FULL = 0.75
"""Share of a large page that must be there already: the rest is memory that nobody asked for."""


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


def in_large_pages() -> int:
    """Moves what this process holds of its own into pages of 2 MiB, where those are nearly full; how many bytes lie there.

    A search goes through weights, codes and Python's objects all over the memory; with pages of 4 kB the processor must look most
    of them up, by two tables in a virtual machine (docs/decisions/0069). A quarter of a second for each hundred MiB, and safe while
    others search. Where the kernel does not know how, or is told never to, nothing happens.
    """
    try:
        if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
            return 0
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    except (OSError, AttributeError):
        log.debug("this system has no large pages")
        return 0
    moved = 0
    for start, end in list(_own()):
        there = np.zeros((end - start) // PAGE, np.uint8)
        if libc.mincore(start, end - start, there.ctypes.data):
            continue  # it is gone again
        for place in np.flatnonzero(there.reshape(-1, LARGE_PAGE // PAGE).mean(axis=1) >= FULL):
            moved += LARGE_PAGE * (libc.madvise(start + int(place) * LARGE_PAGE, LARGE_PAGE, MADV_COLLAPSE) == 0)
    return moved


def _own() -> Iterator[tuple[int, int]]:
    """Where anonymous memory of this process begins and ends, as far as it is whole large pages."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights, *_, name = f"{line} -".split(maxsplit=5)
        if "w" not in rights or name.removesuffix("-").strip() not in ("", "[heap]"):
            continue
        start, end = (int(a, 16) for a in where.split("-"))
        start, end = -(-start // LARGE_PAGE) * LARGE_PAGE, end // LARGE_PAGE * LARGE_PAGE
        if start < end:
            yield start, end
