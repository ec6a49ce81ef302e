"""`vitrine-serve`: one replica."""

import logging
import os
import sys

import typer

from serving.settings import ServingSettings

MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""MLflow's own are 120 s and 7 retries: a replica would learn minutes late that its registry is away."""


def serve() -> None:
    """Serves the live index version over HTTP. Settings are VITRINE_… variables; see docs/serving.md."""
    import uvicorn

    from serving.app import create_app

    # The registry is asked every few seconds anyway: a call that fails is better given up at once than retried for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    for name, value in MLFLOW_PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        settings = ServingSettings.load(os.environ)
    except ValueError as error:
        sys.exit(str(error))
    uvicorn.run(create_app(settings), host=settings.host, port=settings.port, log_level="warning", timeout_graceful_shutdown=10)


def main() -> None:
    typer.run(serve)


if __name__ == "__main__":
    main()
