"""The step of watch_champion: detects a champion alias that moved without an asset event."""

import logging
import time
from collections.abc import Callable

from tasks.pipelines.common import registry
from tasks.registry import ENCODER_MODEL, Registry

log = logging.getLogger(__name__)

GRACE_S = 30.0
"""How long a move waits for whoever made it to tell Airflow: MLflow's message takes milliseconds, train_encoder's task seconds."""


def moved_champion(
    announced: Callable[[], str], models: Registry | None = None, pause: Callable[[float], None] = time.sleep
) -> dict:
    """The champion, if its last `announced` version still differs after a grace period; version "" otherwise."""
    models = models or registry()
    champion = models.aliases(ENCODER_MODEL).get("champion", "")
    if champion and champion != announced():
        pause(GRACE_S)
        champion = models.aliases(ENCODER_MODEL).get("champion", "")
    before = announced()
    if not champion:
        summary = f"no version of {ENCODER_MODEL} is champion yet"
    elif champion == before:
        summary = f"encoder version {champion} is champion, as Airflow was told"
    else:
        summary = f"encoder version {champion} became champion and Airflow was told of {before or 'none'}: every product is embedded again"
        log.info("%s", summary)
        return {"version": champion, "summary": summary, "links": {"Model version": models.version_url(ENCODER_MODEL, champion)}}
    log.info("%s", summary)
    return {"version": "", "summary": summary}
