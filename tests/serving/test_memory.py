"""Large blocks go back to the system when they are freed, whatever was freed before; what is in use lies in large pages."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from serving import memory

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


PLACED = """
import json, mmap
from serving.memory import in_large_pages, resident_bytes
def huge(): return sum(int(line.split()[1]) << 10 for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages"))
used, hardly = (mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2))
for at in range(0, 64 << 20, 4096):
    used[at] = at // 4096 % 251
    if at % 16384 == 0:
        hardly[at] = 1
before = huge(), resident_bytes()
moved = in_large_pages()
whole = all(used[at] == at // 4096 % 251 for at in range(0, 64 << 20, 4096))
print(json.dumps([moved, huge() - before[0], resident_bytes() - before[1], whole, in_large_pages()]))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or tuple(map(int, platform.release().split(".")[:2])) < (6, 1), reason="Linux can from 6.1 on"
)
def test_memory_that_is_in_use_is_moved_into_large_pages_and_what_hardly_is_stays() -> None:
    told = subprocess.run([sys.executable, "-c", PLACED], capture_output=True, text=True, check=True).stdout
    moved, huge, grown, whole, again = json.loads(told)
    assert whole
    assert huge >= 60 << 20
    assert moved >= huge
    assert grown < 16 << 20  # 48 MiB if the other pages had been filled up
    assert again >= moved  # what lies there already counts


def test_nothing_is_moved_where_the_system_was_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr(memory, "PAGES_SETTING", tmp_path / "enabled")
    assert memory.in_large_pages() == 0


TOUCHED = """
import resource, threading
import numpy as np
from serving.memory import keep_large_apart
keep_large_apart()
def search(): return [np.ones(400_000, np.uint8) for _ in range(4)]
def work():
    for _ in range(20):
        search()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(100):
        search()
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heaps")
def test_what_one_search_frees_is_there_for_the_next() -> None:
    """1.6 MB in blocks below LARGE, a hundred times: 66 new pages each time where 128 KiB are all that stays, as glibc has it."""
    told = subprocess.run([sys.executable, "-c", TOUCHED], capture_output=True, text=True, check=True).stdout
    assert int(told) < 1_000
