"""Large blocks go back to the system when they are freed, whatever was freed before; what stays lies in large pages."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

FREED = """
import numpy as np
from serving.memory import keep_large_apart, resident_bytes
{first}
def fill(count): return [np.ones(3 << 20, np.uint8) for _ in range(count)]
del (blocks := fill(1))[:]
between, blocks = [], []
for _ in range(60):
    blocks += fill(1)
    between.append(np.ones(100_000, np.uint8))
before = resident_bytes()
blocks.clear()
print((before - resident_bytes()) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="is read from /proc")
def test_what_lives_long_does_not_keep_freed_blocks() -> None:
    kept, apart = (
        int(subprocess.run([sys.executable, "-c", FREED.format(first=first)], capture_output=True, text=True, check=True).stdout)
        for first in ("", "keep_large_apart()")
    )
    assert apart > 170  # all of 60 x 3 MiB
    assert apart >= kept


PAGES = """
import ctypes, mmap
from serving.memory import LARGE_PAGE, in_large_pages
def rolled(name):
    return next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith(name + ":")) << 10
full, empty = (mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2))
full[:] = bytes(range(256)) * (len(full) // 256)
large, own = rolled("AnonHugePages"), rolled("Anonymous")
moved = in_large_pages()
same = full[:] == bytes(range(256)) * (len(full) // 256)
print(moved >> 20, (rolled("AnonHugePages") - large) >> 20, (rolled("Anonymous") - own) >> 20, same)
"""


def _may_have_large_pages() -> bool:
    """Linux 6.1 and later, unless somebody turned them off."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    version = tuple(int(n) for n in re.findall(r"\d+", platform.release())[:2])
    return setting.exists() and "[never]" not in setting.read_text() and version >= (6, 1)


def test_what_is_there_is_moved_into_large_pages_and_nothing_is_filled_for_it() -> None:
    told = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True).stdout.split()
    moved, large, more, same = int(told[0]), int(told[1]), int(told[2]), told[3]
    assert same == "True"
    if not _may_have_large_pages():
        assert moved == 0
        return
    assert moved >= large >= 28, "32 MiB, but for what is no whole page at its ends"
    assert more < 16, "what is reserved and empty stays so"
