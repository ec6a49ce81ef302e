"""Applications behind real ports, in threads of this process, stopped at the end; and waiting for what comes about."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving.api.connection_limits import LimitedHttpProtocol
from serving.app import create_app
from serving.settings import ServingSettings
from tests.servers import free_port


def until(holds: Callable[[], bool], what: str = "it comes about", limit_s: float = 60.0) -> None:
    """Waits until something holds, looking often at first and every 0.3 s in the end. Fails after `limit_s`."""
    end, pause = time.monotonic() + limit_s, 0.002
    while not holds():
        assert time.monotonic() < end, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(pause)
        pause = min(0.3, 1.5 * pause)


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether a server answers 200 there."""
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=timeout_s, trust_env=False).status_code == 200
    return False


class Served:
    """Serves an app on a loopback port, by default a free one; `with` stops it."""

    def __init__(self, app: FastAPI, port: int = 0) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = uvicorn.Config(
            app, host="127.0.0.1", port=port, http=LimitedHttpProtocol, log_level="warning", ws="none",
            timeout_keep_alive=75,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> "Served":
        self.thread.start()
        until = time.monotonic() + 60
        while not self.server.started:
            if not self.thread.is_alive() or time.monotonic() > until:
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.should_exit = True
        self.thread.join(60)


@contextmanager
def gateway_over_shards(release: Path, count: int = 2) -> Iterator[TestClient]:
    """A gateway that is ready over so many shard processes of a release, each of one shard."""
    with ExitStack() as stack:
        settings = [ServingSettings(role="shard", shards=(str(n),), release=str(release), poll_s=0.05) for n in range(count)]
        urls = tuple(stack.enter_context(Served(create_app(one))).url for one in settings)
        app = create_app(ServingSettings(role="gateway", shard_urls=urls, release=str(release), probe_s=0.05, poll_s=0.05))
        gateway = stack.enter_context(TestClient(app))
        until(lambda: gateway.get("/readyz").status_code == 200)
        yield gateway
