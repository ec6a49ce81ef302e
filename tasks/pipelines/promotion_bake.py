"""The bake of a promotion: metrics from before the flip, the decision after it, and the rollback when the version fails."""

import logging
from collections.abc import Sequence

from tasks.pipelines.common import replicas_of
from tasks.registry import INDEX_MODEL, Registry
from tasks.release.gates.index_gates import Decision
from tasks.release.promotion.bake import BakePolicy, Reading, bake, take_reading
from tasks.release.promotion.blue_green import LeasedAliases, choose_slot, flip, settle_previous, warm
from tasks.release.promotion.lease import Lease
from tasks.release.promotion.serving_replicas import Replica, for_each_replica
from tasks.settings import Settings

log = logging.getLogger(__name__)

BAKE, KEPT, UNDER_WAY = "bake", "kept", "under way"
"""The tag of a version that states its bake, and how the tag of a version that was kept, or is not decided yet, begins."""
WARM_LIMIT_S = 600.0
"""How long replicas may take to load a version."""
FLIP_LIMIT_S = 60.0
"""How long replicas may take to serve a version that they hold."""


def metrics_before(replicas: list[Replica], version: str) -> list[Reading]:
    """Each replica's metrics of the moment; empty ones of a replica that does not answer."""
    return [found or Reading() for found in for_each_replica(replicas, lambda replica: take_reading(replica, version))]


def run_bake(models: Registry, aliases: LeasedAliases, chosen: Settings, version: str, before: Sequence[Reading]) -> Decision:
    """Monitors the live version, then keeps it or rolls it back, and tags it with the decision; without `before`, from now on."""
    replicas = replicas_of(chosen)
    policy = BakePolicy(p99_ms=chosen.p99_ms, recall=chosen.recall_target - 0.05)
    start = before or metrics_before(replicas, version)
    decision = bake(replicas, version, start, chosen.bake_s, policy, aliases.lease.check)
    if decision.passed:
        aliases.tag_version(INDEX_MODEL, version, BAKE, f"{KEPT}: {decision.summary}")
        return Decision(True, (f"version {version} stays live: {decision.summary}",))
    back = settle_previous(aliases)
    verdict = f"failed: after it went live, {decision.summary}"
    aliases.tag_version(INDEX_MODEL, version, "verdict", verdict)
    aliases.tag_version(INDEX_MODEL, version, BAKE, f"rolled back: {decision.summary}")
    if not back:
        return Decision(False, (f"version {version} {verdict}; there is nothing to go back to, so it stays",))
    plan = choose_slot(models, back)
    warm(aliases, replicas, plan, WARM_LIMIT_S)
    flip(aliases, replicas, plan, FLIP_LIMIT_S)
    return Decision(False, (f"version {version} was rolled back and version {back} is live again: {decision.summary}",))


def finish_bake(models: Registry, lease: Lease, chosen: Settings, version: str) -> None:
    """Finishes the interrupted bake of the live version before `version` overwrites its rollback target."""
    live = models.alias(INDEX_MODEL, "live")
    if live is None or live.version == version or not live.tags.get(BAKE, "").startswith(UNDER_WAY):
        return
    log.info("version %s is live with an unfinished bake, which is finished first", live.version)
    log.info("%s", run_bake(models, LeasedAliases(models, lease), chosen, live.version, []).summary)
