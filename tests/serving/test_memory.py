"""Large blocks go back to the system when they are freed, whatever was freed before."""

import subprocess
import sys

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
