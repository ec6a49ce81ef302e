"""uvicorn's server with a drain before its end, so that no client which keeps connections open loses a request."""

import time

import uvicorn

from serving.api.routes.state import Process

CLOSE = (b"connection", b"close")


class DrainingServer(uvicorn.Server):
    """After SIGTERM or SIGINT it answers for `drain_s` seconds more, then ends as uvicorn does.

    Meanwhile `/readyz` answers 503 and every answer carries `Connection: close`: load balancers take the process out, and clients
    that keep a connection open come back on a new one, which leads elsewhere. uvicorn itself closes idle connections at the
    signal, where a request may be on its way. A second SIGINT ends the drain.
    """

    def __init__(self, config: uvicorn.Config, process: Process, drain_s: float) -> None:
        super().__init__(config)
        self.process, self.drain_s = process, drain_s
        self.drained_at: float | None = None

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; ten times a second."""
        if not await super().on_tick(counter):
            return False
        if self.drained_at is None:
            self.drained_at = time.monotonic() + self.drain_s
            self.process.draining = True
            self.config.encoded_headers.append(CLOSE)
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        return self.force_exit or time.monotonic() >= self.drained_at
