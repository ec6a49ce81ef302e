"""Admission control: bounds concurrent work and answers 503 with Retry-After beyond the bound."""

from types import TracebackType

from serving.api.errors import ApiError


class AdmissionLimit:
    """A context manager that admits at most `limit` holders at a time and raises ApiError(503) beyond. `what` is named in the message.

    Not thread-safe: for use on the event loop.
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
    """The 503 problem with Retry-After, for work beyond a limit; `what` is named in its message."""
    return ApiError(503, f"too many {what}; try again in a second", "overloaded", {"Retry-After": "1"})
