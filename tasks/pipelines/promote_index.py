"""The steps of promote_index and rollback_index, and both as one call for the command line and the stream."""

import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.errors import GateFailed, VitrineError
from tasks.pipelines.common import query_runtime, registry, settings, work_folder
from tasks.pipelines.publish_features import switch_features
from tasks.registry import INDEX_MODEL, Registry
from tasks.release.promotion.blue_green import LIVE_AT, LeasedAliases, Plan, choose_slot
from tasks.release.promotion.lease import HANDOVER_S, LeaseLost, hold_lease
from tasks.release.promotion.serving_replicas import Replica
from tasks.settings import Settings

log = logging.getLogger(__name__)

LIMIT_S = 600.0
FLIP_LIMIT_S = 60.0
PATIENCE_S = 120.0
"""How long a promotion waits for another one to end."""
SHADOW_QUERIES = 100
EXPERIMENT = "promotions"
BAKE, KEPT, UNDER_WAY = "bake", "kept", "under way"


def choose(version: str, run_key: str) -> dict[str, Any]:
    """Chooses the slot for a version (default: the candidate) that passed its gates.

    Raises VitrineError when it did not. `done`: it is live and was kept already.
    """
    chosen = settings()
    models = registry(chosen)
    wanted = version or models.require_alias(INDEX_MODEL, "candidate").version
    found = models.version(INDEX_MODEL, wanted)
    _admit(models, wanted)
    with hold_lease(models, run_key, patience_s=PATIENCE_S, keep_s=HANDOVER_S) as lease:
        _finish_bake(models, lease, chosen, wanted)
        plan = choose_slot(models, wanted)
        epoch = lease.epoch
    done = plan.live == wanted and found.tags.get(BAKE, "").startswith(KEPT)
    summary = f"version {plan.version} goes to {plan.slot}; live is {f'version {plan.live}' if plan.live else 'nothing yet'}"
    if done:  # nothing follows that would release it
        release_lease(run_key)
        summary = f"version {wanted} is live already, and was kept"
    log.info("%s", summary)
    return dataclasses.asdict(plan) | {"epoch": epoch, "done": done, "summary": summary, "links": _links(models, wanted)}


def warm(plan: dict, run_key: str) -> dict[str, Any]:
    """Every replica loads and verifies the version in the idle slot."""
    from tasks.release.promotion.blue_green import warm as warm_slot

    chosen = settings()
    replicas = replicas_of(chosen)
    with _guarded(registry(chosen), plan, run_key) as aliases:
        took = warm_slot(aliases, replicas, _plan(plan), LIMIT_S)
    summary = f"{len(replicas)} replicas hold version {plan['version']} in {plan['slot']} after {took:.1f} s"
    log.info("%s", summary)
    return {"seconds": took, "replicas": len(replicas), "summary": summary}


def shadow(plan: dict, run_key: str) -> dict[str, Any]:
    """Replays real queries against both slots of every replica: each must answer as the version itself does.

    `text` is the gate report and this one for whoever approves the promotion, in Markdown.
    """
    from tasks.catalog.snapshot import read_snapshot
    from tasks.release.gates.end_to_end_eval import held_out_queries, read_photos
    from tasks.release.gates.evaluate import open_version
    from tasks.release.gates.gate_report import approval_text
    from tasks.release.promotion.replay import collect_samples, replay_queries, top_ids
    from tasks.release.promotion.shadow import compare

    chosen = settings()
    models, replicas = registry(chosen), replicas_of(chosen)
    with _guarded(models, plan, run_key):
        release = open_version(models, plan["version"], query_runtime())
        live = open_version(models, plan["live"], query_runtime()) if plan["live"] and plan["live"] != plan["version"] else None
        snapshot = read_snapshot(release.manifest.snapshot.uri)
        photos = read_photos(snapshot, held_out_queries(snapshot, SHADOW_QUERIES))
        queries = replay_queries(release, live, collect_samples(replicas, SHADOW_QUERIES), photos, SHADOW_QUERIES)
        report = compare(replicas, plan["slot"], plan["live_slot"] if live else "", queries, top_ids(release, queries.vectors))
        folder = work_folder(run_key)
        (folder / "shadow.json").write_text(json.dumps(report, indent=1))
        with models.run(EXPERIMENT, run_key, f"promote version {plan['version']}", {"version": plan["version"]}) as run:
            run.artifact(folder / "shadow.json")
            run.metrics({"agreement": report["agreement"], "churn": report["churn"]})
            links = {"MLflow run": models.run_url(run.run_id)} | _links(models, plan["version"])
    log.info("%s", report["summary"])
    text = approval_text(release.manifest, plan["version"], plan["live"], report["summary"], links)
    return report | {"text": text, "links": links}


def needs_approval(answer: str) -> bool:
    """Whether a person must approve: "yes", "no", or anything else for the setting's value."""
    return {"yes": True, "no": False}.get(answer, settings().approval)


def release_lease(run_key: str) -> None:
    """Releases the lease while waiting for approval, so that others can promote meanwhile."""
    with hold_lease(registry(), run_key):
        pass


def flip(plan: dict, run_key: str) -> dict[str, Any]:
    """Moves `live` to the version on every replica. Raises LeaseLost when another version became live since the plan."""
    from tasks.release.promotion.blue_green import flip as flip_live
    from tasks.release.promotion.blue_green import warm as warm_slot

    chosen = settings()
    models, replicas, made = registry(chosen), replicas_of(chosen), _plan(plan)
    with _guarded(models, plan, run_key) as aliases:
        now = choose_slot(models, made.version)
        if now.live not in (made.live, made.version):
            raise LeaseLost(
                f"version {now.live or 'none'} is live by now and version {made.live or 'none'} was when version {made.version} was "
                "compared with it; promote it again"
            )
        warm_slot(aliases, replicas, now, LIMIT_S)  # at once, unless another promotion took the slot while a person was asked
        before = _metrics_before(replicas, made.version)
        aliases.tag_version(INDEX_MODEL, made.version, BAKE, f"{UNDER_WAY}, by {run_key}")
        took = flip_live(aliases, replicas, now, FLIP_LIMIT_S)
    if LIVE_AT not in models.version(INDEX_MODEL, made.version).tags:
        models.tag_version(INDEX_MODEL, made.version, LIVE_AT, f"{time.time():.3f}")
    summary = (
        f"index version {made.version} is live in {now.slot} ({f'version {made.live}' if made.live else 'nothing'} before); "
        f"the flip took {took:.1f} s on {len(replicas)} replicas"
    )
    log.info("%s", summary)
    return {
        "version": made.version, "slot": now.slot, "seconds": took, "summary": summary, "before": before,
        "links": _links(models, made.version),
    }  # fmt: skip


def bake(plan: dict, flipped: dict, run_key: str, bake_s: float | None = None) -> dict[str, Any]:
    """Monitors the replicas for a while after the flip, then keeps the version or rolls back.

    `bake_s` replaces the setting. Raises GateFailed when it was rolled back.
    """
    chosen = settings()
    chosen = chosen if bake_s is None else dataclasses.replace(chosen, bake_s=bake_s)
    models = registry(chosen)
    with _guarded(models, plan, run_key) as aliases:
        decision = _bake(models, aliases, chosen, plan["version"], flipped["before"])
    with models.run(EXPERIMENT, run_key, f"promote version {plan['version']}") as run:
        run.metrics({"flip_s": flipped["seconds"], "kept": float(decision.passed)})
        run.tag("bake", decision.summary)
    if not decision.passed:
        raise GateFailed(decision.summary)
    log.info("%s", decision.summary)
    return {"version": plan["version"], "summary": decision.summary, "links": _links(models, plan["version"])}


def settle(run_key: str) -> dict[str, Any]:
    """Cleans up however the promotion ended: the idle slot holds `previous`, and the lease is released."""
    from tasks.release.promotion.blue_green import settle as settle_slots

    chosen = settings()
    models = registry(chosen)
    try:
        with hold_lease(models, run_key, patience_s=PATIENCE_S) as lease:
            done = settle_slots(LeasedAliases(models, lease), replicas_of(chosen))
    except (LeaseLost, VitrineError) as error:  # whoever has the lease now leaves things in order
        done = f"nothing: {error}"
    done = "; ".join(told for told in (done, switch_features()) if told)
    log.info("%s", done or "nothing to clean up")
    return {"summary": done}


def roll_back(holder: str, to: str = "") -> dict[str, Any]:
    """Moves `live` to the previous version (or `to`) on every replica. Does not wait for a running promotion: that becomes void."""
    from tasks.release.promotion.blue_green import rollback

    chosen = settings()
    models = registry(chosen)
    if to:
        _passed(models, to)
    with hold_lease(models, holder, urgent=True, patience_s=PATIENCE_S) as lease:
        plan, took = rollback(LeasedAliases(models, lease), replicas_of(chosen), LIMIT_S, to)
    was = f"was: version {plan.live}" if plan.live != plan.version else "it was live already"
    summary = f"version {plan.version} is live in {plan.slot} ({was}), on every replica after {took:.1f} s"
    summary = "; ".join(told for told in (summary, switch_features()) if told)
    log.info("%s", summary)
    return {
        "version": plan.version,
        "before": plan.live,
        "seconds": took,
        "summary": summary,
        "links": _links(models, plan.version),
    }


def promote(version: str, holder: str, bake_s: float | None = None) -> dict[str, Any]:
    """The whole promote_index in one call without approval, for `vitrine release promote` and the stream.

    `bake_s` replaces the setting. Raises VitrineError when the version did not go live, or went and was rolled back.
    """
    plan = choose(version, holder)
    if plan["done"]:
        return plan
    try:
        warm(plan, holder)
        report = shadow(plan, holder)
        if not report["passed"]:
            raise GateFailed(report["summary"])
        flipped = flip(plan, holder)
        baked = bake(plan, flipped, holder, bake_s)
    finally:
        settle(holder)
    return flipped | {"summary": f"{flipped['summary']}; {baked['summary']}"}


def replicas_of(chosen: Settings) -> list[Replica]:
    return [Replica(url, chosen.admin_token) for url in chosen.serving_urls]


def _admit(models: Registry, version: str) -> None:
    """Raises VitrineError for a version that did not pass its gates."""
    from tasks.release.gates.verdict import refusal

    found = models.version(INDEX_MODEL, version)
    why = refusal(dataclasses.replace(found, aliases=()), models.index_manifest(version))
    if why:
        raise VitrineError(why)


def _passed(models: Registry, version: str) -> None:
    """Raises VitrineError unless the version's gates held; what a bake said of it later does not count when a person names it."""
    gates = models.index_manifest(version).gates
    if not gates or not all(g.passed for g in gates):
        raise VitrineError(f"index version {version} did not pass its gates; choose another: vitrine release list")


@contextmanager
def _guarded(models: Registry, plan: dict, run_key: str) -> Iterator[LeasedAliases]:
    """Aliases under the lease of this promotion's plan; the lease is kept for the next step."""
    with hold_lease(models, run_key, epoch=plan["epoch"], patience_s=PATIENCE_S, keep_s=HANDOVER_S) as lease:
        yield LeasedAliases(models, lease)


def _plan(record: dict) -> Plan:
    return Plan(**{f.name: record[f.name] for f in dataclasses.fields(Plan)})


def _metrics_before(replicas: list[Replica], version: str) -> list[dict[str, Any]]:
    from tasks.release.promotion.bake import Reading, take_reading
    from tasks.release.promotion.serving_replicas import for_each_replica

    return [_record(r or Reading()) for r in for_each_replica(replicas, lambda replica: take_reading(replica, version))]


def _finish_bake(models: Registry, lease: Any, chosen: Settings, version: str) -> None:
    """Finishes the interrupted bake of the live version before its rollback target is overwritten."""
    live = models.alias(INDEX_MODEL, "live")
    if live is None or live.version == version or not live.tags.get(BAKE, "").startswith(UNDER_WAY):
        return
    log.info("version %s is live with an unfinished bake, which is finished first", live.version)
    decision = _bake(models, LeasedAliases(models, lease), chosen, live.version, [])
    log.info("%s", decision.summary)


def _bake(models: Registry, aliases: LeasedAliases, chosen: Settings, version: str, before: list[dict[str, Any]]) -> Any:
    from tasks.release.gates.policy import Decision
    from tasks.release.promotion.bake import BakePolicy, Reading, bake, take_reading
    from tasks.release.promotion.blue_green import flip as flip_live
    from tasks.release.promotion.blue_green import settle_previous
    from tasks.release.promotion.blue_green import warm as warm_slot
    from tasks.release.promotion.serving_replicas import for_each_replica

    replicas = replicas_of(chosen)
    policy = BakePolicy(p99_ms=chosen.p99_ms, recall=chosen.recall_target - 0.05)
    start = [_reading(r) for r in before] or [
        r or Reading() for r in for_each_replica(replicas, lambda one: take_reading(one, version))
    ]
    decision = bake(replicas, version, start, chosen.bake_s, policy, aliases.lease.check)
    if decision.passed:
        aliases.tag_version(INDEX_MODEL, version, BAKE, f"{KEPT}: {decision.summary}")
        return Decision(True, (f"version {version} is kept: {decision.summary}",))
    back = settle_previous(aliases)
    verdict = f"failed: it was live and {decision.summary}"
    aliases.tag_version(INDEX_MODEL, version, "verdict", verdict)
    aliases.tag_version(INDEX_MODEL, version, BAKE, f"rolled back: {decision.summary}")
    if not back:
        return Decision(False, (f"version {version} {verdict}; there is nothing to go back to, so it stays",))
    plan = choose_slot(models, back)
    warm_slot(aliases, replicas, plan, LIMIT_S)
    flip_live(aliases, replicas, plan, FLIP_LIMIT_S)
    return Decision(False, (f"version {version} was rolled back and version {back} is live again: {decision.summary}",))


def _record(reading: Any) -> dict[str, Any]:
    """A reading as JSON, with bucket bounds as text."""
    return dataclasses.asdict(reading) | {"buckets": {str(le): n for le, n in reading.buckets.items()}}


def _reading(record: dict[str, Any]) -> Any:
    from tasks.release.promotion.bake import Reading

    return Reading(**(record | {"buckets": {float(le): n for le, n in record["buckets"].items()}}))


def _links(models: Registry, version: str) -> dict[str, str]:
    found = models.version(INDEX_MODEL, version)
    return {
        "Model version": models.version_url(INDEX_MODEL, version), "MLflow run": models.run_url(found.run_id),
        "Data docs": models.artifact_url(found.run_id, "data_docs"),
    }  # fmt: skip
