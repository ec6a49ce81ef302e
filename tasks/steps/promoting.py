"""The steps of promote_index, and the rollback that a person asks for."""

import dataclasses
import json
import logging
from typing import Any

from tasks.registry import INDEX_MODEL
from tasks.release.promotion import Plan, choose_slot
from tasks.release.replicas import Replica
from tasks.settings import Settings
from tasks.steps.common import registry, settings, work_folder

log = logging.getLogger(__name__)

LIMIT_S = 600.0
SHADOW_QUERIES = 50
EXPERIMENT = "promotions"


def choose(version: str) -> dict[str, Any]:
    """The slot for this version (default: the candidate)."""
    models = registry()
    wanted = version or models.require_alias(INDEX_MODEL, "candidate").version
    plan = choose_slot(models, wanted)
    log.info("version %s goes to %s; live is %s", plan.version, plan.slot, plan.live or "nothing yet")
    return dataclasses.asdict(plan)


def warm(plan: dict) -> dict[str, Any]:
    """Every replica loads and verifies the version beside the running one."""
    from tasks.release.promotion import warm as warm_slot

    chosen = settings()
    replicas = replicas_of(chosen)
    took = warm_slot(registry(chosen), replicas, Plan(**plan), LIMIT_S)
    log.info("%d replicas hold version %s in %s after %.1f s", len(replicas), plan["version"], plan["slot"], took)
    return {"seconds": took, "replicas": len(replicas)}


def shadow(plan: dict, run_key: str) -> dict[str, Any]:
    """Replays held-out photos' vectors against the slot of every replica: each must answer as the version itself does."""
    from tasks.catalog.snapshot import read_snapshot
    from tasks.release.measuring import open_version
    from tasks.release.shadow import compare
    from tasks.release.whole_path import held_out, measure

    chosen = settings()
    models = registry(chosen)
    release = open_version(models, plan["version"], chosen.home / "serving" / "gate-cache")
    snapshot = read_snapshot(release.manifest.snapshot.uri)
    path = measure(release, snapshot, held_out(snapshot, SHADOW_QUERIES), "shadow check")
    report = compare(replicas_of(chosen), plan["slot"], plan["live_slot"], path)
    folder = work_folder(run_key)
    (folder / "shadow.json").write_text(json.dumps(report, indent=1))
    with models.run(EXPERIMENT, run_key, f"promote version {plan['version']}") as run:
        run.artifact(folder / "shadow.json")
        run.metrics({"agreement": report["agreement"], "churn": report["churn"]})
    log.info("%s", report["summary"])
    return report


def flip(plan: dict) -> dict[str, Any]:
    """`live` names the version; every replica serves it."""
    from tasks.release.promotion import flip as flip_live

    chosen = settings()
    took = flip_live(registry(chosen), replicas_of(chosen), Plan(**plan), LIMIT_S)
    before = f"version {plan['live']} before" if plan["live"] else "nothing before"
    summary = f"index version {plan['version']} is live in {plan['slot']} ({before}); the flip took {took:.1f} s"
    log.info("%s", summary)
    return {"version": plan["version"], "slot": plan["slot"], "seconds": took, "summary": summary}


def replicas_of(chosen: Settings) -> list[Replica]:
    return [Replica(url, chosen.admin_token) for url in chosen.serving_urls]
