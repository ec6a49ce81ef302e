"""The step of rollback_index."""

import logging

from tasks.errors import ServiceAway, VitrineError
from tasks.pipelines.common import registry, replicas_of, settings, version_links
from tasks.pipelines.promote_index import PATIENCE_S
from tasks.pipelines.promotion_bake import FLIP_LIMIT_S, WARM_LIMIT_S
from tasks.pipelines.promotion_records import Rollback
from tasks.pipelines.publish_features import switch_features
from tasks.registry import Registry
from tasks.release.promotion.blue_green import LeasedAliases, rollback
from tasks.release.promotion.lease import hold_lease
from tasks.settings import Settings

log = logging.getLogger(__name__)


def roll_back(holder: str, to: str = "") -> Rollback:
    """Moves `live` to the previous version (or `to`) on every replica. Does not wait for a running promotion: that is cancelled.

    Raises ServiceAway naming the replicas that did not follow; everything else has moved then.
    """
    chosen = settings()
    models = registry(chosen)
    if to:
        _require_gates(models, to)
    with hold_lease(models, holder, urgent=True, patience_s=PATIENCE_S) as lease:
        try:
            plan, took = rollback(LeasedAliases(models, lease), replicas_of(chosen), WARM_LIMIT_S, FLIP_LIMIT_S, to)
        except ServiceAway:
            _bring_along(models, chosen)
            raise
    features = _bring_along(models, chosen)
    was = f"was: version {plan.live}" if plan.live != plan.version else "it was live already"
    summary = f"version {plan.version} is live in {plan.slot} ({was}), on every replica after {took:.1f} s"
    summary = "; ".join(part for part in (summary, features) if part)
    log.info("%s", summary)
    return Rollback(plan.version, plan.live, took, summary, version_links(models, plan.version))


def _bring_along(models: Registry, chosen: Settings) -> str:
    """Moves to the live version what else follows it: the engine's alias and the feature store, of which it gives a sentence."""
    from tasks.pipelines.collection_steps import show_live

    show_live(models, chosen)
    return switch_features()


def _require_gates(models: Registry, version: str) -> None:
    """Raises VitrineError unless the version's gates held; a failed bake does not count when a person names the version."""
    gates = models.index_manifest(version).gates
    if not gates or not all(g.passed for g in gates):
        raise VitrineError(f"index version {version} did not pass its gates; choose another: vitrine release list")
