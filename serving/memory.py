"""A replica's memory: what is no longer used goes back to the system, what is used lies in large pages."""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt's names for them in glibc's malloc.h."""
LARGE, KEPT = 1 << 20, 1 << 22
MADV_COLLAPSE = 25
"""madvise's number for it in Linux's mman-common.h, from 6.1 on."""
PAGE, LARGE_PAGE = 1 << 12, 1 << 21
IN_USE = 0.75
"""The share of a large page that must be in use before the rest of it is filled up."""
PAGES_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def keep_large_apart() -> None:
    """Blocks of a megabyte and more come from the system one by one, and go back to it when they are freed.

    glibc begins that way and gives it up with the first of them that is freed: from then on bodies of megabytes and encoders'
    weights lie between what lives long, and leave holes (docs/decisions/0067). Of smaller blocks a heap keeps up to KEPT bytes that are
    free: by itself it would give back what one search frees, and take it anew, page by page, for the next.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
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
            return int(stream.read().split()[1]) * PAGE
    except OSError:
        return 0


def in_large_pages() -> int:
    """Moves the process's own memory into pages of 2 MiB where most of one is in use; how many bytes lie in such pages now.

    The processor looks up where each page lies, and remembers too few for Python's, the C library's and ONNX Runtime's heaps in
    pages of 4 KiB (docs/decisions/0069). Nothing is done where the system does not know how, or was told not to.
    """
    with suppress(OSError):
        if "[never]" in PAGES_SETTING.read_text():
            return 0
    libc = ctypes.CDLL(None)
    moved = 0
    for start, pages in _own_memory():
        there = np.empty(pages * (LARGE_PAGE // PAGE), np.uint8)
        if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(pages * LARGE_PAGE), ctypes.c_void_p(there.ctypes.data)):
            continue  # it was given back a moment ago
        used = (there & 1).reshape(pages, -1).mean(axis=1)
        for page in np.flatnonzero(used >= IN_USE).tolist():
            at = ctypes.c_void_p(start + page * LARGE_PAGE)
            moved += LARGE_PAGE * (libc.madvise(at, ctypes.c_size_t(LARGE_PAGE), MADV_COLLAPSE) == 0)
    return moved


def _own_memory() -> Iterator[tuple[int, int]]:
    """What this process holds of no file, to read and to write, that large pages fit into: the first one's address, and how many."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        span, rights, _, _, inode, name = [*line.split(maxsplit=5), ""][:6]
        if rights != "rw-p" or inode != "0" or not (name == "" or name.startswith(("[heap]", "[anon"))):
            continue
        first, end = (int(address, 16) for address in span.split("-"))
        start = -(-first // LARGE_PAGE) * LARGE_PAGE
        if end - start >= LARGE_PAGE:
            yield start, (end - start) // LARGE_PAGE
