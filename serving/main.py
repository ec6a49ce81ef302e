"""`vitrine-serve`: one replica."""

import logging
import os
import sys

import typer

from serving.settings import ServingSettings


def serve() -> None:
    """Serves the live index version over HTTP. Settings are VITRINE_… variables; see docs/serving.md."""
    import uvicorn

    from serving.app import create_app

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = ServingSettings.load(os.environ)
    except ValueError as error:
        sys.exit(str(error))
    uvicorn.run(create_app(settings), host=settings.host, port=settings.port, log_level="warning", timeout_graceful_shutdown=10)


def main() -> None:
    typer.run(serve)


if __name__ == "__main__":
    main()
