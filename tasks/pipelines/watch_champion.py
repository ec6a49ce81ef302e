"""The step of watch_champion: detects a champion alias that moved without an asset event."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.pipelines.common import registry
from tasks.records import Record
from tasks.registry import ENCODER_MODEL, Registry

log = logging.getLogger(__name__)

GRACE_S = 30.0
"""Grace period before polling reports a move: MLflow's webhook takes milliseconds, train_encoder's own asset event seconds."""


@dataclass(frozen=True)
class MovedChampion(Record):
    """The champion that Airflow was not notified of; `version` is "" when there is none."""

    version: str
    summary: str
    links: dict[str, str] = field(default_factory=dict)


def moved_champion(
    announced: Callable[[], str], models: Registry | None = None, pause: Callable[[float], None] = time.sleep
) -> MovedChampion:
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
        summary = f"encoder version {champion} is champion, as announced to Airflow"
    else:
        summary = (
            f"encoder version {champion} became champion; the last one announced to Airflow is {before or 'none'}: every product is "
            "embedded again"
        )
        log.info("%s", summary)
        return MovedChampion(champion, summary, {"Model version": models.version_url(ENCODER_MODEL, champion)})
    log.info("%s", summary)
    return MovedChampion("", summary)
