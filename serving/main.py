"""`vitrine-serve`: one replica."""

import gc
import os
import sys
from functools import partial

import typer

from serving import logs
from serving.settings import ServingSettings

KEEP_ALIVE_S = 75
"""Longer than load balancers (60 s) and gateways keep a connection idle: whoever may send next must not be the one who is closed on."""

GARBAGE = 20_000
"""New objects until Python looks for circles among them. Its own 700 are there after a few requests, and of those under way none is
garbage: up to a twentieth of a search by vector went there (docs/performance.md, "Serving")."""

PAGES_S = 10.0
"""How often memory that was taken since is moved into large pages: a few milliseconds where there is none."""


def serve() -> None:
    """Serves the live index version over HTTP. Settings are VITRINE_… variables; see docs/serving.md."""
    import uvicorn

    from serving.app import create_app
    from serving.connection_limits import LimitedHttpProtocol
    from serving.following import Following
    from serving.memory import in_large_pages, keep_large_apart
    from serving.source import limit_patience

    limit_patience()
    try:
        settings = ServingSettings.load(os.environ)
        app = create_app(settings)
    except ValueError as error:
        sys.exit(str(error))
    keep_large_apart()
    logs.set_up(settings.log)
    gc.collect()
    gc.freeze()  # modules live as long as the process: they need not be gone through again and again
    gc.set_threshold(GARBAGE)
    Following({"large pages": (in_large_pages, PAGES_S)}).start()
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(
            LimitedHttpProtocol,
            head_s=settings.head_s,
            max_head_bytes=settings.head_bytes,
            max_connections=settings.connections,
        ),  # type: ignore[arg-type]
        log_level="warning",
        log_config=None,
        access_log=False,
        ws="none",
        proxy_headers=False,  # nothing here asks for the caller's address
        server_header=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


def main() -> None:
    typer.run(serve)


if __name__ == "__main__":
    main()
