"""The endpoint of MLflow's webhook for moved aliases. The signature authenticates a message; its content is only a hint.

A message only makes us look: which version is champion is asked of MLflow, and compared with what Airflow was told last. So a
message that comes twice, late, or again from someone who kept it starts nothing.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from tasks.pipelines.common import registry
from tasks.registry import ENCODER_MODEL, Registry
from tasks.registry.webhook import InvalidWebhook, verify
from tasks.settings import Settings

log = logging.getLogger(__name__)

LONGEST = 64 * 1024
ANNOUNCER = ("train_encoder", "promote_champion")
"""The task that moves the alias itself, and announces it when it ends."""


def create_hook(
    settings: Settings, open_registry: Callable[[], Registry] | None = None, clock: Callable[[], float] = time.time
) -> FastAPI:
    """The FastAPI application with its one route."""
    app = FastAPI(title="Vitrine hook", docs_url=None, redoc_url=None, openapi_url=None)
    one_at_a_time = threading.Lock()

    def announce() -> dict[str, Any]:
        models = open_registry() if open_registry else registry(settings)
        champion = models.aliases(ENCODER_MODEL).get("champion", "")
        with one_at_a_time:
            return announce_champion(champion)

    @app.post("/champion")
    async def champion(request: Request) -> dict[str, Any]:
        """Publishes the encoder asset's event for a new champion, once per move of the alias; that triggers rebuild_index."""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > LONGEST:
                raise HTTPException(413, f"a message has at most {LONGEST} bytes")
        try:
            moved = verify(request.headers, bytes(body), settings.webhook_secret, clock())
        except InvalidWebhook as error:
            log.warning("a message to the hook was refused: %s", error)
            raise HTTPException(401, str(error)) from None
        if moved is None or not moved.is_champion:
            return {"announced": False, "why": "it is not about the champion encoder"}
        return await run_in_threadpool(announce)

    return app


def announce_champion(version: str) -> dict[str, Any]:
    """Publishes the event unless it was published already or train_encoder is about to; the asset's row serves as the lock."""
    from airflow.assets.manager import asset_manager
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import select

    if not version:
        return {"announced": False, "why": "no version is champion any more"}
    with create_session() as session:
        asset = session.scalar(select(AssetModel).where(AssetModel.name == ENCODER_MODEL).with_for_update())
        if asset is None:
            raise HTTPException(503, f"Airflow does not know the asset {ENCODER_MODEL} yet; MLflow will try again")
        last = session.scalar(select(AssetEvent).where(AssetEvent.asset_id == asset.id).order_by(AssetEvent.id.desc()).limit(1))
        if last is not None and str((last.extra or {}).get("version", "")) == version:
            return {"announced": False, "why": f"version {version} was announced already", "version": version}
        task = select(TaskInstance.task_id).where(
            TaskInstance.dag_id == ANNOUNCER[0],
            TaskInstance.task_id == ANNOUNCER[1],
            TaskInstance.state == TaskInstanceState.RUNNING,
        )
        if session.scalar(task.limit(1)):
            return {"announced": False, "why": f"{ANNOUNCER[0]} moved the alias and announces it itself", "version": version}
        asset_manager.register_asset_change(
            asset=asset, timestamp=datetime.now(UTC), extra={"version": version, "told_by": "MLflow"}, source_is_api=True,
            api_user_teams=set(), session=session,
        )  # fmt: skip
    log.info("encoder version %s became champion in MLflow: rebuild_index embeds every product again", version)
    return {"announced": True, "version": version}
