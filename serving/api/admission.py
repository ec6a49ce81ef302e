"""A bounded number of places for work on its way in; whoever finds none is told to come back."""

from types import TracebackType

from serving.api.errors import Refused


class Places:
    """`most` places, each held by a `with`, which raises Refused(503) when there is none. `what` says of what there is too much.

    For the loop's own thread: nothing is locked.
    """

    def __init__(self, most: int, what: str) -> None:
        self.most, self.what = most, what
        self.taken = 0

    def __enter__(self) -> None:
        if self.taken >= self.most:
            raise overloaded(self.what)
        self.taken += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.taken -= 1


def overloaded(what: str) -> Refused:
    """The refusal of one more than there is room for."""
    return Refused(503, f"too many {what}; try again in a second", "overloaded", {"Retry-After": "1"})
