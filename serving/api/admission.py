"""A bounded number of places for work on its way in; whoever finds none is told to come back."""

from types import TracebackType

from serving.api.errors import ApiError


class AdmissionLimit:
    """`most` places, each held by a `with`, which raises Refused(503) when there is none. `what` says of what there is too much.

    For the loop's own thread: nothing is locked.
    """

    def __init__(self, limit: int, what: str) -> None:
        self.limit, self.what = limit, what
        self.in_use = 0

    def __enter__(self) -> None:
        if self.in_use >= self.limit:
            raise overloaded(self.what)
        self.in_use += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.in_use -= 1


def overloaded(what: str) -> ApiError:
    """The refusal of one more than there is room for."""
    return ApiError(503, f"too many {what}; try again in a second", "overloaded", {"Retry-After": "1"})
