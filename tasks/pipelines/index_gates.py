"""Evaluates and decides a new index version with the settings' thresholds and replicas; used by all builders."""

import logging
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from serving.versions.release import Release
from tasks.catalog.snapshot import Snapshot
from tasks.pipelines.common import query_runtime, replicas_of, settings
from tasks.registry import Registry
from tasks.release.gates.end_to_end_eval import Query
from tasks.release.gates.evaluate import Evaluation, GroundTruthOf, evaluate_version, open_live
from tasks.release.gates.index_gates import Policy
from tasks.settings import Settings

log = logging.getLogger(__name__)


def policy_of(chosen: Settings) -> Policy:
    """The thresholds from the settings; others keep the policy's defaults."""
    return Policy(
        exact_recall=chosen.recall_target, photo_margin=chosen.max_recall_loss,
        photo_worst=max(Policy.photo_worst, chosen.max_recall_loss), slice_margin=chosen.max_slice_loss, p99_ms=chosen.p99_ms,
        memory_mb=chosen.replica_mb / 2, quarantined=chosen.most_quarantined, lost=chosen.max_lost, churn=chosen.max_churn,
        age_h=chosen.max_age_h,
    )  # fmt: skip


def evaluate_gates(
    models: Registry, release: Release, snapshot: Snapshot, queries: list[Query], read_at: datetime,
    catalogue: pa.Table | None = None, quarantined: np.ndarray | int | None = None, truth_of: GroundTruthOf | None = None,
) -> Evaluation:  # fmt: skip
    """The decision on a candidate against the live version, with each gate logged; parameters: see evaluate.evaluate_version."""
    chosen = settings()
    live = open_live(models, query_runtime())
    decision, measured = evaluate_version(
        release,
        live,
        snapshot,
        queries,
        policy_of(chosen),
        replicas_of(chosen),
        read_at,
        datetime.now(UTC),
        catalogue,
        quarantined,
        truth_of,
    )
    for gate in decision.gates:
        log.info("%s %s: %s", "passed" if gate.passed else "FAILED", gate.name, gate.reason)
    return decision, measured
