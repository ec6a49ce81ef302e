"""The command `vitrine-serve`: runs one replica under uvicorn."""

import os
import sys
from contextlib import suppress
from functools import partial

import typer

from serving.settings import ServingSettings
from serving.telemetry import logs

KEEP_ALIVE_S = 75
"""Longer than the idle timeouts of load balancers (60 s) and gateways, so that the client, not the server, closes idle connections."""


def serve() -> None:
    """Serves the live index version over HTTP. Settings are VITRINE_… variables; see docs/operate/serving.md."""
    import uvicorn
    from uvicorn.main import STARTUP_FAILURE

    from serving.api.connection_limits import LimitedHttpProtocol
    from serving.api.draining_server import DrainingServer
    from serving.api.open_connections import OpenConnections
    from serving.app import create_app
    from serving.versions.version_source import limit_mlflow_timeouts

    limit_mlflow_timeouts()
    try:
        settings = ServingSettings.load(os.environ)
        open_connections = OpenConnections(settings.connections, settings.address_share, settings.proxies)
        app = create_app(settings)
    except ValueError as error:
        sys.exit(str(error))
    logs.set_up(settings.log)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(  # type: ignore[arg-type]
            LimitedHttpProtocol,
            head_s=settings.head_s,
            max_head_bytes=settings.head_bytes,
            open_connections=open_connections,
        ),
        log_level="warning",
        log_config=None,
        access_log=False,
        ws="none",
        proxy_headers=bool(settings.proxies),  # else nobody's word about the caller's address is taken
        forwarded_allow_ips=list(settings.proxies),
        server_header=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = DrainingServer(config, app.state.process, settings.drain_s)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def main() -> None:
    typer.run(serve)


if __name__ == "__main__":
    main()
