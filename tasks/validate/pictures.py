"""Fast check of pictures: existence, format and size. Decodes and downloads nothing."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

import numpy as np

from serving.contract import addresses
from serving.contract.image_header import open_image
from serving.contract.image_limits import DEFAULT_LIMITS, ImageRejected
from tasks.catalog.photo_box import split_box
from tasks.embed.images import kind_of_file, resolve

MOST = 5_000
LIMIT_S = 60.0
BLOCK = 64
THREADS = 8


@dataclass
class PictureCheck:
    """Result: `bad` maps rows to problems, `usable` are the good rows, `total` the number of pictures.

    Rows that only reading could tell about (https://, s3://) count as usable.
    """

    total: int
    usable: set[int] = field(default_factory=set)
    bad: dict[int, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.usable) + len(self.bad)

    @property
    def whole(self) -> bool:
        return self.count == self.total

    def exceeds(self, share: float) -> bool:
        """Whether the bad share exceeds `share`; for a sample, by more than three standard errors."""
        if not self.bad:
            return False
        found = len(self.bad) / self.count
        error = 0.0 if self.whole else 3 * (found * (1 - found) / self.count) ** 0.5
        return found - error > share

    def first(self, rows: int, total: int) -> "PictureCheck":
        """The check of the first `rows` rows alone, which have `total` pictures."""
        usable, bad = {row for row in self.usable if row < rows}, {row: why for row, why in self.bad.items() if row < rows}
        return self if total == self.total else PictureCheck(total, usable, bad)

    def shares(self) -> str:
        """Bad of checked pictures, as text."""
        return f"{len(self.bad)} of {self.count}" + ("" if self.whole else f" (a sample of {self.total})")


def check_pictures(
    uris: Sequence[str], root: str, hosts: tuple[str, ...], progress: Callable[[int, int], None], limit_s: float = LIMIT_S
) -> PictureCheck:
    """Checks all pictures, or MOST drawn evenly, for at most `limit_s` seconds; calls `progress(done, total)`. "" is no picture."""
    there = [row for row, uri in enumerate(uris) if uri]
    found = PictureCheck(len(there))
    chosen = np.random.default_rng(0).permutation(np.array(there, np.int64))[:MOST].tolist()
    end = time.monotonic() + limit_s
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(chosen), BLOCK):
            if time.monotonic() > end:
                break
            rows = chosen[start : start + BLOCK]
            for row, wrong in zip(rows, pool.map(partial(problem, root=root, hosts=hosts), [uris[r] for r in rows]), strict=True):
                if wrong:
                    found.bad[row] = wrong
                else:
                    found.usable.add(row)
            progress(found.count, len(chosen))
    return found


def problem(uri: str, root: str, hosts: tuple[str, ...]) -> str:
    """What is wrong with a picture by address, size and header; "" for nothing."""
    uri, _ = split_box(uri)
    scheme = addresses.scheme(uri)
    if scheme in ("http", "https"):
        try:
            host = urlsplit(uri).hostname
        except ValueError:
            return f"{uri}: is not an address"
        return "" if host in hosts else f"{uri}: the host is not among VITRINE_IMAGE_HOSTS"
    if scheme == "s3" or (not scheme and root.startswith("s3://")):
        return ""
    if scheme not in ("", "file"):
        return f"{uri}: pictures are read from files, s3:// or https://, not {scheme}://"
    try:
        path = resolve(uri, root)
        if not path.exists():
            return f"{uri}: there is no such file below {root}"
        if not path.is_file():
            return f"{uri}: is {kind_of_file(path.stat().st_mode)}, not a picture"
        size = path.stat().st_size
        if not size:
            return f"{uri}: the file is empty"
        if size > DEFAULT_LIMITS.max_bytes:
            return f"{uri}: {size} bytes; at most {DEFAULT_LIMITS.max_bytes} are accepted"
        data = path.read_bytes()
    except ImageRejected as error:
        return str(error)
    except OSError as error:
        return f"{uri}: the file cannot be read ({error.strerror or type(error).__name__})"
    try:
        open_image(data, DEFAULT_LIMITS)
    except ImageRejected as error:
        return f"{uri}: {error}"
    return ""
