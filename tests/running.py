"""An application behind a real port: in a thread of this process, stopped at the end."""

import threading
import time
from types import TracebackType

import uvicorn
from fastapi import FastAPI

from tests.servers import free_port


class Served:
    """Serves an app on a loopback port, by default a free one; `with` stops it."""

    def __init__(self, app: FastAPI, port: int = 0) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", ws="none"))
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
