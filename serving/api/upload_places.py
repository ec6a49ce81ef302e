"""Places for bodies that are being received: few enough for memory, and never all taken by slow senders or by one address."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.api.admission import overloaded
from serving.api.open_connections import share_of

GRACE_S = 1.0
"""A body that has been coming for longer than this gives up its place, when all are taken, before a new one is refused."""
WHAT = "photos are on their way in"


@dataclass(eq=False)
class Upload:
    """A body that is being received. `deadline` and `began` are times of the event loop."""

    address: str
    began: float
    deadline: float
    received: int = 0
    timeout: asyncio.Timeout | None = None

    def rate(self, now: float) -> float:
        """Bytes a second so far."""
        return self.received / max(now - self.began, 1e-3)

    def give_up(self, now: float) -> None:
        """Makes the receiving end now with TimeoutError."""
        self.deadline = now
        if self.timeout is not None and not self.timeout.expired():
            self.timeout.reschedule(now)


class UploadPlaces:
    """At most `limit` bodies at a time, of them `share` from one address. Not thread-safe: for use on the event loop.

    Beyond the limit the slowest of those older than GRACE_S is given up, of the same address where that has its share; where all
    are younger, the new one is refused.
    """

    def __init__(self, limit: int, share: float = 1.0) -> None:
        self.limit, self.most_of_one = limit, share_of(limit, share)
        self.uploads: set[Upload] = set()

    @property
    def in_use(self) -> int:
        return len(self.uploads)

    @contextmanager
    def admit(self, upload: Upload) -> Iterator[None]:
        """Holds a place. Raises ApiError(503) where there is none."""
        now = asyncio.get_running_loop().time()
        same = [u for u in self.uploads if u.address == upload.address]
        if len(same) >= self.most_of_one:
            self._displace(same, now)
        elif len(self.uploads) >= self.limit:
            self._displace(list(self.uploads), now)
        self.uploads.add(upload)
        try:
            yield
        finally:
            self.uploads.discard(upload)

    def _displace(self, candidates: list[Upload], now: float) -> None:
        slow = [u for u in candidates if now - u.began > GRACE_S]
        if not slow:
            raise overloaded(WHAT)
        slowest = min(slow, key=lambda u: u.rate(now))
        self.uploads.discard(slowest)
        slowest.give_up(now)
