"""The error of a request that its sender has to change."""


class InvalidRequest(ValueError):
    """A request that is not as it has to be; the message says to its sender what is wrong. Any other ValueError is a bug of ours."""

    status, reason = 422, "request"
