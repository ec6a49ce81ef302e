"""Admission control: bounds concurrent work and answers 503 with Retry-After beyond the bound."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.api.errors import ApiError
from serving.api.open_connections import share_of


class AdmissionLimit:
    """Admits at most `limit` holders at a time, `share` of them from one address. `what` is named in the message.

    Not thread-safe: for use on the event loop.
    """

    def __init__(self, limit: int, what: str, share: float = 1.0) -> None:
        self.limit, self.what, self.most_of_one = limit, what, share_of(limit, share)
        self.by_address: Counter[str] = Counter()

    @property
    def in_use(self) -> int:
        return self.by_address.total()

    @contextmanager
    def admit(self, address: str = "") -> Iterator[None]:
        """Holds a place. Raises ApiError(503) where there is none, of all or for this address."""
        if self.in_use >= self.limit or self.by_address[address] >= self.most_of_one:
            raise overloaded(self.what)
        self.by_address[address] += 1
        try:
            yield
        finally:
            self.by_address[address] -= 1
            if not self.by_address[address]:
                del self.by_address[address]


def overloaded(what: str) -> ApiError:
    """The 503 problem with Retry-After, for work beyond a limit; `what` is named in its message."""
    return ApiError(503, f"too many {what}; try again in a second", "overloaded", {"Retry-After": "1"})
