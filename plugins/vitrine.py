"""The Airflow plugin: release board, external views, operator links, and the MLflow webhook."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from plugins.board import run_notes, task_logs
from plugins.board.task_links import LINKS
from tasks.connections import SCHEME
from tasks.settings import Settings

SETTINGS = Settings.load()


class LazyApp:
    """An ASGI application created at its first request, so that only the API server imports it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.app: Any = None
        self.lock = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self.lock:
            if self.app is None:
                self.app = await asyncio.to_thread(self.make)
        await self.app(scope, receive, send)


def settings() -> Settings:
    """The settings with what connections of Airflow hold, which only a running API server can read."""
    from airflow.models.connection import Connection

    from tasks.connections import resolve_connections

    resolve_connections(os.environ, Connection.get_connection_from_secrets)
    return Settings.load()


def make_board() -> Any:
    from plugins.board.app import create_app
    from tasks.board.board_data import Board
    from tasks.board.changes import ChangesBoard
    from tasks.pipelines.common import registry, replicas_of
    from tasks.pipelines.drain_changes import change_source

    chosen = settings()
    board = Board(lambda: registry(chosen), lambda: replicas_of(chosen))
    return create_app(board, ChangesBoard(lambda: change_source(chosen), lambda: board.registry, chosen.store_uri))


def make_hook() -> Any:
    from plugins.board.mlflow_webhook import create_hook

    return create_hook(settings())


def external_views() -> list[dict[str, str]]:
    """Views of other servers. They open in a new tab, as those servers forbid framing.

    An address that a connection of Airflow holds is not known yet: set VITRINE_MLFLOW_PAGE for its view.
    """
    from serving.contract.addresses import without_userinfo

    pages = [
        ("MLflow", without_userinfo(SETTINGS.mlflow_page or SETTINGS.mlflow_uri)),
        *(("Search page", without_userinfo(url)) for url in SETTINGS.serving_urls[:1]),
    ]
    return [
        {"name": name, "href": url, "destination": "nav", "category": "browse"}
        for name, url in pages
        if not url.startswith(SCHEME)
    ]


class VitrinePlugin(AirflowPlugin):
    """Registers the apps, views, links and listeners."""

    name = "vitrine"
    fastapi_apps = [
        {"app": LazyApp(make_board), "url_prefix": "/vitrine", "name": "Vitrine release board"},
        {"app": LazyApp(make_hook), "url_prefix": "/vitrine-hook", "name": "Vitrine hook for MLflow"},
    ]
    external_views = [
        {
            "name": "Releases", "href": "/vitrine/", "destination": "nav", "nav_top_level": True, "url_route": "releases",
            "icon": "/vitrine/static/icon.svg",
        },
        *external_views(),
    ]  # fmt: skip
    global_operator_extra_links = LINKS
    listeners = [run_notes, task_logs]
