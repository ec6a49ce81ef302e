"""With the image's allocator settings, freed memory goes back to the system, and small blocks stay for the next search."""

import os
import subprocess
import sys

import pytest

from tests.image import allocator_settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's heaps, read from /proc")

FREED = """
import numpy as np
from serving.telemetry.memory import resident_bytes
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

TOUCHED = """
import resource, threading
import numpy as np
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

DROPPED = """
import time
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from serving.telemetry.memory import resident_bytes
def file(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": pa.array(np.arange(rows)).cast(pa.string()), "price": np.random.rand(rows)}), sink)
    return sink.getvalue().to_pybytes()
pq.read_table(pa.py_buffer(file(10)))
before = resident_bytes()
whole = file(2_000_000)
for _ in range(4):
    pq.read_table(pa.py_buffer(whole))
kept = []
for _ in range(20):
    time.sleep(0.05)  # threads that read may be about to let go
    kept.append(resident_bytes() - before - len(whole))
print(min(kept) >> 20)
"""


def printed(script: str, **environment: str) -> int:
    environ = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "ARROW_"))} | environment
    return int(subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True).stdout)


def test_long_lived_blocks_do_not_keep_freed_ones_resident() -> None:
    """60 blocks of 3 MiB with something small after each: glibc's moving threshold keeps them in the heap, the image's does not."""
    assert printed(FREED, **allocator_settings()) > 170
    assert printed(FREED) < 100, "glibc does this by itself now: the settings of the image can go"


def test_what_one_search_frees_is_there_for_the_next() -> None:
    """1.6 MB in blocks below the mmap threshold, a hundred times: 66 new pages each time where only 128 KiB stay."""
    settings = allocator_settings()
    assert printed(TOUCHED, **settings) < 1_000
    del settings["MALLOC_TRIM_THRESHOLD_"]
    assert printed(TOUCHED, **settings) > 2_000, "the threshold can go"


def test_the_tables_of_a_version_that_is_gone_do_not_stay_in_arrows_pool() -> None:
    """A table of two million rows is made, read four times and dropped: MiB that stay resident (about 11, and 130 to 180)."""
    images, arrows_own = printed(DROPPED, **allocator_settings()), printed(DROPPED)
    assert images < arrows_own / 3, (images, arrows_own)
