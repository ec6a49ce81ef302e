"""An application behind a real port, in a thread of this process, stopped at the end; and waiting for what comes about."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

import uvicorn
from fastapi import FastAPI

from serving.api.connection_limits import LimitedHttpProtocol
from tests.servers import free_port


def until(holds: Callable[[], bool], what: str = "it comes about", limit_s: float = 20.0) -> None:
    """Waits until something holds, looking often at first and every 0.3 s in the end. Fails after `limit_s`."""
    end, pause = time.monotonic() + limit_s, 0.002
    while not holds():
        assert time.monotonic() < end, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(pause)
        pause = min(0.3, 1.5 * pause)


class Served:
    """Serves an app on a loopback port, by default a free one; `with` stops it."""

    def __init__(self, app: FastAPI, port: int = 0) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = uvicorn.Config(app, host="127.0.0.1", port=port, http=LimitedHttpProtocol, log_level="warning", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> "Served":
        self.thread.start()
        until = time.monotonic() + 20
        while not self.server.started:
            if not self.thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.should_exit = True
        self.thread.join(20)
