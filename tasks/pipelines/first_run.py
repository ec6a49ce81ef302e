"""Skips automatic runs while inputs are missing and the DAG has never succeeded, instead of failing them."""

import logging
from collections.abc import Callable

from tasks.errors import InputMissing
from tasks.pipelines.common import registry
from tasks.registry import ENCODER_MODEL, INDEX_MODEL, Registry
from tasks.release.gates.recorded_verdict import verdict
from tasks.release.promotion.blue_green import LIVE_AT

log = logging.getLogger(__name__)

AUTOMATIC = ("scheduled", "asset_triggered")
"""Airflow's types of runs that no person started."""


def skip_reason(dag: str, run_type: str, error: InputMissing) -> str:
    """Why a run that lacks an input is skipped, as one sentence for its log; "" when it fails with `error` instead.

    It fails when a person started it, and once the DAG has succeeded: what is missing then was lost.
    """
    succeeded = SUCCEEDED.get(dag)
    if run_type not in AUTOMATIC or succeeded is None or succeeded(registry()):
        return ""
    reason = f"nothing to do yet for {dag}: {error}"
    log.info("%s", reason)
    return reason


def _has_good_encoder(models: Registry) -> bool:
    return any(verdict(version, None) == "passed" for version in models.versions(ENCODER_MODEL))


def _has_good_index(models: Registry) -> bool:
    return any(verdict(version, None) == "passed" for version in models.versions(INDEX_MODEL))


def _was_live(models: Registry) -> bool:
    return any(LIVE_AT in version.tags for version in models.versions(INDEX_MODEL))


SUCCEEDED: dict[str, Callable[[Registry], bool]] = {
    "train_encoder": _has_good_encoder,
    "rebuild_index": _has_good_index,
    "refresh_index": _has_good_index,
    "promote_index": _has_good_index,
    "watch_quality": _was_live,
}
"""For each DAG that needs an input: whether it has succeeded before, by what it leaves in MLflow."""
