"""The step of rollback_index."""

import logging

from tasks.errors import VitrineError
from tasks.pipelines.common import registry, replicas_of, settings, version_links
from tasks.pipelines.promote_index import PATIENCE_S
from tasks.pipelines.promotion_bake import WARM_LIMIT_S
from tasks.pipelines.promotion_records import Rollback
from tasks.pipelines.publish_features import switch_features
from tasks.registry import Registry
from tasks.release.promotion.blue_green import LeasedAliases, rollback
from tasks.release.promotion.lease import hold_lease

log = logging.getLogger(__name__)


def roll_back(holder: str, to: str = "") -> Rollback:
    """Moves `live` to the previous version (or `to`) on every replica. Does not wait for a running promotion: that is cancelled."""
    from tasks.pipelines.collection_steps import show_live

    chosen = settings()
    models = registry(chosen)
    if to:
        _require_gates(models, to)
    with hold_lease(models, holder, urgent=True, patience_s=PATIENCE_S) as lease:
        plan, took = rollback(LeasedAliases(models, lease), replicas_of(chosen), WARM_LIMIT_S, to)
    show_live(models, chosen)
    was = f"was: version {plan.live}" if plan.live != plan.version else "it was live already"
    summary = f"version {plan.version} is live in {plan.slot} ({was}), on every replica after {took:.1f} s"
    summary = "; ".join(part for part in (summary, switch_features()) if part)
    log.info("%s", summary)
    return Rollback(plan.version, plan.live, took, summary, version_links(models, plan.version))


def _require_gates(models: Registry, version: str) -> None:
    """Raises VitrineError unless the version's gates held; a failed bake does not count when a person names the version."""
    gates = models.index_manifest(version).gates
    if not gates or not all(g.passed for g in gates):
        raise VitrineError(f"index version {version} did not pass its gates; choose another: vitrine release list")
