"""The bake of a promotion: metrics from before the flip, the decision after it, and the rollback when the version fails.

The step may be tried again after any write (a replica, or MLflow, that does not answer): the version's tags say what was decided, and
a decision is carried out, never made twice.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence

from tasks.errors import VitrineError
from tasks.pipelines.common import replicas_of
from tasks.pipelines.promotion_records import BeforeFlip
from tasks.records import RecordError
from tasks.registry import INDEX_MODEL, Registry, Version
from tasks.release.gates.index_gates import Decision
from tasks.release.promotion.bake import BakePolicy, Reading, bake, take_reading
from tasks.release.promotion.blue_green import LeasedAliases, choose_slot, flip, settle_previous, warm_for_rollback
from tasks.release.promotion.lease import Lease
from tasks.release.promotion.serving_replicas import SILENT_S, Replica, for_each_replica
from tasks.settings import Settings

log = logging.getLogger(__name__)

BAKE, KEPT, UNDER_WAY = "bake", "kept", "under way"
"""The tag of a version that states its bake, and how the tag of a version that was kept, or is not decided yet, begins."""
BEFORE = "metrics_before"
"""The tag of a version that keeps the replicas' metrics of the moment before it went live: an attempt that died knew them."""
LIVE_FAILED = "failed: after it went live, "
"""How the verdict of a version begins that its bake rejected."""
WARM_LIMIT_S = 600.0
"""How long replicas may take to load a version."""
FLIP_LIMIT_S = 60.0
"""How long replicas may take to serve a version that they hold."""


def take_metrics(replicas: Sequence[Replica], version: str) -> list[Reading]:
    """The metrics of the moment, of those replicas that answer."""
    return [found for found in for_each_replica(replicas, lambda replica: take_reading(replica, version)) if found]


def keep_metrics(aliases: LeasedAliases, version: str, epoch: str, readings: Sequence[Reading]) -> None:
    """Writes the metrics of before the flip on the version that is about to go live."""
    counted = [dataclasses.replace(r, buckets={le: n for le, n in r.buckets.items() if n}) for r in readings]
    aliases.tag_version(INDEX_MODEL, version, BEFORE, json.dumps(BeforeFlip(epoch, counted).to_json()))


def kept_metrics(found: Version, epoch: str) -> list[Reading]:
    """The metrics of before the version went live, as `keep_metrics` wrote them; [] where they are unknown.

    Those of another epoch are: a rollback has moved `live` since.
    """
    try:
        kept = BeforeFlip.from_json(json.loads(found.tags.get(BEFORE, "null")))
    except (ValueError, RecordError):
        return []
    return kept.readings if kept.epoch == epoch else []


def run_bake(models: Registry, aliases: LeasedAliases, chosen: Settings, version: str, before: Sequence[Reading]) -> Decision:
    """Monitors the live version, then keeps it or rolls it back, and tags it with the decision.

    A replica without a reading in `before` is counted from now on. What an earlier call decided is carried out. Raises VitrineError
    for a version without a decision that is not live any more: what is live now is another promotion's to judge.
    """
    replicas = replicas_of(chosen)
    tags, live = models.version(INDEX_MODEL, version).tags, models.alias(INDEX_MODEL, "live")
    if tags.get("verdict", "").startswith(LIVE_FAILED):
        return _roll_back(models, aliases, replicas, version, tags["verdict"].removeprefix(LIVE_FAILED))
    if tags.get(BAKE, "").startswith(f"{KEPT}: "):
        return Decision(True, (f"version {version} stays live: {tags[BAKE].removeprefix(f'{KEPT}: ')}",))
    if live is None or live.version != version:
        raise VitrineError(
            f"version {version} is not live any more ({f'version {live.version}' if live else 'nothing'} is): its bake is over"
        )
    policy = BakePolicy(p99_ms=chosen.p99_ms, recall=chosen.recall_target - 0.05)
    known = {reading.url: reading for reading in [*take_metrics(replicas, version), *before]}
    start = [known.get(replica.url, Reading()) for replica in replicas]
    decision = bake(replicas, version, start, chosen.bake_s, policy, aliases.lease.check)
    if decision.passed:
        aliases.tag_version(INDEX_MODEL, version, BAKE, f"{KEPT}: {decision.summary}")
        return Decision(True, (f"version {version} stays live: {decision.summary}",))
    return _roll_back(models, aliases, replicas, version, decision.summary)


def _roll_back(models: Registry, aliases: LeasedAliases, replicas: list[Replica], version: str, why: str) -> Decision:
    """Makes live again what the version replaced, and waits for the replicas; where another is live already, only waits."""
    live = models.alias(INDEX_MODEL, "live")
    away = live is not None and live.version != version  # an earlier call moved it: going back once more would lead forth again
    back = live.version if live is not None and away else settle_previous(aliases)
    aliases.tag_version(INDEX_MODEL, version, "verdict", f"{LIVE_FAILED}{why}")
    aliases.tag_version(INDEX_MODEL, version, BAKE, f"rolled back: {why}")
    if not back:
        return Decision(False, (f"version {version} {LIVE_FAILED}{why}; there is nothing to go back to, so it stays",))
    plan = choose_slot(models, back)
    if not away:
        warm_for_rollback(aliases, replicas, plan, WARM_LIMIT_S)
    flip(aliases, replicas, plan, FLIP_LIMIT_S, SILENT_S)
    return Decision(False, (f"version {version} was rolled back and version {back} is live again: {why}",))


def finish_bake(models: Registry, lease: Lease, chosen: Settings, version: str) -> None:
    """Finishes the interrupted bake of the live version before `version` overwrites its rollback target."""
    live = models.alias(INDEX_MODEL, "live")
    if live is None or live.version == version or not live.tags.get(BAKE, "").startswith(UNDER_WAY):
        return
    log.info("version %s is live with an unfinished bake, which is finished first", live.version)
    log.info("%s", run_bake(models, LeasedAliases(models, lease), chosen, live.version, kept_metrics(live, lease.epoch)).summary)
