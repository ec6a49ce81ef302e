"""The steps of promote_index, and all of them as one call for the command line and the stream."""

import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.errors import GateFailed, VitrineError
from tasks.pipelines.common import query_runtime, registry, replicas_of, scratch, settings, version_links
from tasks.pipelines.promotion_bake import (
    BAKE,
    FLIP_LIMIT_S,
    KEPT,
    UNDER_WAY,
    WARM_LIMIT_S,
    finish_bake,
    keep_metrics,
    kept_metrics,
    run_bake,
    take_metrics,
)
from tasks.pipelines.promotion_records import Bake, Cleanup, Flip, Promotion, PromotionPlan, WarmedSlot
from tasks.pipelines.publish_features import switch_features
from tasks.registry import INDEX_MODEL, Registry
from tasks.release.promotion import blue_green
from tasks.release.promotion.blue_green import LIVE_AT, LeasedAliases, choose_slot
from tasks.release.promotion.lease import HANDOVER_S, LeaseLost, hold_lease
from tasks.release.promotion.proposal import newer_candidate, withdraw_mark
from tasks.release.promotion.shadow import ShadowReport, compare

log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""How long a promotion waits for another one to end."""
SHADOW_QUERIES = 100
EXPERIMENT = "promotions"


def choose(version: str, run_key: str) -> PromotionPlan:
    """Chooses the slot for a version (default: the candidate) that passed its gates. Raises VitrineError when it did not."""
    chosen = settings()
    models = registry(chosen)
    wanted = version or models.require_alias(INDEX_MODEL, "candidate").version
    found = models.version(INDEX_MODEL, wanted)
    _require_passed(models, wanted)
    with hold_lease(models, run_key, patience_s=PATIENCE_S, keep_s=HANDOVER_S) as lease:
        finish_bake(models, lease, chosen, wanted)
        plan = choose_slot(models, wanted)
        epoch = lease.epoch
    done = plan.live == wanted and found.tags.get(BAKE, "").startswith(KEPT)
    summary = f"version {plan.version} goes to {plan.slot}; live is {f'version {plan.live}' if plan.live else 'nothing yet'}"
    if done:  # nothing follows that would release it
        release_lease(run_key)
        summary = f"version {wanted} is live already and passed its bake"
    log.info("%s", summary)
    return PromotionPlan(**dataclasses.asdict(plan), epoch=epoch, done=done, summary=summary, links=version_links(models, wanted))


def warm(plan: PromotionPlan, run_key: str) -> WarmedSlot:
    """Every replica loads and verifies the version in the idle slot."""
    chosen = settings()
    replicas = replicas_of(chosen)
    with _guarded(registry(chosen), plan, run_key) as aliases:
        took = blue_green.warm(aliases, replicas, plan.slots, WARM_LIMIT_S)
    summary = f"{len(replicas)} replicas hold version {plan.version} in {plan.slot} after {took:.1f} s"
    log.info("%s", summary)
    return WarmedSlot(took, len(replicas), summary)


def shadow(plan: PromotionPlan, run_key: str) -> ShadowReport:
    """Replays real queries against both slots of every replica. Raises GateFailed unless the new slot answers right."""
    from serving.ranking.column_changes import column_changes
    from tasks.catalog.snapshot import read_snapshot
    from tasks.queries.query_words import kind_name
    from tasks.release.gates.end_to_end_eval import held_out_queries, query_set_of, read_photos
    from tasks.release.gates.evaluate import open_version
    from tasks.release.gates.gate_report import approval_text
    from tasks.release.promotion.replay import collect_samples, replay_queries, top_ids

    chosen = settings()
    models, replicas = registry(chosen), replicas_of(chosen)
    with _guarded(models, plan, run_key):
        release = open_version(models, plan.version, query_runtime())
        live = open_version(models, plan.live, query_runtime()) if plan.live and plan.live != plan.version else None
        snapshot = read_snapshot(release.manifest.snapshot.uri)
        held_out = held_out_queries(snapshot, SHADOW_QUERIES)
        photos, asked = read_photos(snapshot, held_out), kind_name(query_set_of(held_out))
        queries = replay_queries(release, live, collect_samples(replicas, SHADOW_QUERIES), photos, SHADOW_QUERIES, asked)
        report = compare(replicas, plan.slot, plan.live_slot if live else "", queries, top_ids(release, queries.vectors))
        if live and (changes := column_changes(live.searcher.features, release.searcher.features)):
            report = dataclasses.replace(report, summary=f"{report.summary}; {changes}")
        with (
            models.run(EXPERIMENT, run_key, f"promote version {plan.version}", {"version": plan.version}) as run,
            scratch(run_key, "shadow") as folder,
        ):
            (folder / "shadow.json").write_text(json.dumps(report.to_json(), indent=1))
            run.artifact(folder / "shadow.json")
            run.metrics({"agreement": report.agreement, "churn": report.churn})
            links = {"MLflow run": models.run_url(run.run_id)} | version_links(models, plan.version)
    log.info("%s", report.summary)
    if not report.passed:
        raise GateFailed(report.summary)
    text = approval_text(release.manifest, plan.version, plan.live, report.summary, links)
    return dataclasses.replace(report, text=text, links=links)


def replaced_while_waiting(version: str) -> str:
    """Whether a newer candidate replaced this one while a person was asked, as one sentence; "" while it is still the candidate."""
    newer = newer_candidate(registry(), version)
    return newer and f"version {version} was superseded by version {newer} before anybody answered; that one is proposed next"


def needs_approval(answer: str) -> bool:
    """Whether a person must approve: "yes", "no", or anything else for the setting's value."""
    return {"yes": True, "no": False}.get(answer, settings().approval)


def release_lease(run_key: str) -> None:
    """Releases the lease while waiting for approval, so that others can promote meanwhile."""
    with hold_lease(registry(), run_key):
        pass


def flip(plan: PromotionPlan, run_key: str) -> Flip:
    """Moves `live` to the version on every replica. Raises LeaseLost when another version became live since the plan."""
    chosen = settings()
    models, replicas = registry(chosen), replicas_of(chosen)
    with _guarded(models, plan, run_key) as aliases:
        now = choose_slot(models, plan.version)
        if now.live not in (plan.live, plan.version):
            raise LeaseLost(
                f"version {plan.version} was compared with version {plan.live or 'none'}, but version {now.live or 'none'} is live now; "
                "promote it again, so that it is compared with that one"
            )
        # At once, unless another promotion took the slot while a person was asked.
        blue_green.warm(aliases, replicas, now, WARM_LIMIT_S)
        if now.live == plan.version:  # an attempt that died has moved it
            before = kept_metrics(models.version(INDEX_MODEL, plan.version), plan.epoch)
        else:
            before = take_metrics(replicas, plan.version)
            keep_metrics(aliases, plan.version, plan.epoch, before)
        aliases.tag_version(INDEX_MODEL, plan.version, BAKE, f"{UNDER_WAY}, by {run_key}")
        took = blue_green.flip(aliases, replicas, now, FLIP_LIMIT_S)
    found = models.version(INDEX_MODEL, plan.version)
    if LIVE_AT not in found.tags:
        models.tag_version(INDEX_MODEL, plan.version, LIVE_AT, f"{time.time():.3f}")
    withdraw_mark(models, found)
    summary = (
        f"index version {plan.version} is live in {now.slot} ({f'version {plan.live}' if plan.live else 'nothing'} before); "
        f"the flip took {took:.1f} s on {len(replicas)} replicas"
    )
    if replicas and not before:
        summary += "; the replicas' metrics of before the flip are unknown, so its bake counts from its own start"
    log.info("%s", summary)
    return Flip(plan.version, now.slot, took, summary, before, version_links(models, plan.version))


def bake(plan: PromotionPlan, flipped: Flip, run_key: str, bake_s: float | None = None) -> Bake:
    """Monitors the replicas for a while after the flip, then keeps the version or rolls back.

    `bake_s` replaces the setting. Raises GateFailed when it was rolled back.
    """
    chosen = settings()
    chosen = chosen if bake_s is None else dataclasses.replace(chosen, bake_s=bake_s)
    models = registry(chosen)
    with _guarded(models, plan, run_key) as aliases:
        decision = run_bake(models, aliases, chosen, plan.version, flipped.before)
    with models.run(EXPERIMENT, run_key, f"promote version {plan.version}") as run:
        run.metrics({"flip_s": flipped.seconds, "kept": float(decision.passed)})
        run.tag("bake", decision.summary)
    if not decision.passed:
        raise GateFailed(decision.summary)
    log.info("%s", decision.summary)
    return Bake(plan.version, decision.summary, version_links(models, plan.version))


def settle(run_key: str) -> Cleanup:
    """Cleans up however the promotion ended: the idle slot holds `previous`, and the lease is released."""
    from tasks.pipelines.collection_steps import show_live

    chosen = settings()
    models = registry(chosen)
    try:
        with hold_lease(models, run_key, patience_s=PATIENCE_S) as lease:
            done = blue_green.refill_idle_slot(LeasedAliases(models, lease), replicas_of(chosen))
    except (LeaseLost, VitrineError) as error:  # whoever has the lease now leaves things in order
        done = f"nothing: {error}"
    show_live(models, chosen)
    done = "; ".join(part for part in (done, switch_features()) if part)
    log.info("%s", done or "nothing to clean up")
    return Cleanup(done)


def promote(version: str, holder: str, bake_s: float | None = None) -> Promotion:
    """The whole promote_index in one call without approval, for `vitrine release promote` and the stream.

    `bake_s` replaces the setting. Raises VitrineError when the version did not go live, or went and was rolled back.
    """
    plan = choose(version, holder)
    if plan.done:
        return Promotion(plan.version, 0.0, plan.summary)
    try:
        warm(plan, holder)
        shadow(plan, holder)
        flipped = flip(plan, holder)
        baked = bake(plan, flipped, holder, bake_s)
    finally:
        settle(holder)
    return Promotion(plan.version, flipped.seconds, f"{flipped.summary}; {baked.summary}")


def _require_passed(models: Registry, version: str) -> None:
    """Raises VitrineError for a version that did not pass its gates."""
    from tasks.release.gates.recorded_verdict import why_not_promotable

    found = models.version(INDEX_MODEL, version)
    why = why_not_promotable(dataclasses.replace(found, aliases=()), models.index_manifest(version))
    if why:
        raise VitrineError(why)


@contextmanager
def _guarded(models: Registry, plan: PromotionPlan, run_key: str) -> Iterator[LeasedAliases]:
    """Aliases under the lease of this promotion's plan; the lease is kept for the next step."""
    with hold_lease(models, run_key, epoch=plan.epoch, patience_s=PATIENCE_S, keep_s=HANDOVER_S) as lease:
        yield LeasedAliases(models, lease)
