"""The tuning step of rebuild_index."""

import dataclasses
import json
import logging
from pathlib import Path

from serving.contract.manifest import EncoderRef
from tasks.catalog.snapshot import Snapshot
from tasks.errors import VitrineError
from tasks.index.build import BuiltShard
from tasks.index.template import Template
from tasks.index.tune import TuningResult
from tasks.pipelines.collection_steps import complete_collection
from tasks.pipelines.common import query_runtime, registry, scratch, settings
from tasks.pipelines.index_draft import EXPERIMENT, draft, index_config, truth_of
from tasks.queries.query_words import describe, tuning_target

log = logging.getLogger(__name__)


def tune(snapshot: Snapshot, encoder: EncoderRef, template: Template, shards: list[BuiltShard], run_key: str) -> TuningResult:
    """Search parameters, tuned on held-out photos through the serving code, or on views that stand in for them.

    A collection of another engine is completed and reconciled first.

    Raises TuningRefused, with the report in MLflow all the same, when no parameters qualify; VitrineError with too few queries.
    """
    from serving.contract.encoder import EncoderFolder
    from serving.index.searcher import Searcher
    from tasks.index import tune as tuning
    from tasks.index.shard_store import locate_shards
    from tasks.release.gates.end_to_end_eval import held_out_queries, query_set_of, query_vectors

    chosen = settings()
    queries = held_out_queries(snapshot)
    if len(queries) < chosen.min_held_out:
        raise VitrineError(
            f"recall can be measured on {describe(query_set_of(queries))}, at least {chosen.min_held_out} are needed: "
            "VITRINE_MIN_HELD_OUT; add shoppers' photos to the catalogue's photos, or products with usable pictures"
            f"{snapshot.orphans and f'; {snapshot.orphans}'}"
        )
    folder = EncoderFolder(registry().encoder_folder(encoder.version))
    xq = query_vectors(folder, encoder.query, snapshot, queries, query_runtime())
    truth = truth_of(snapshot, encoder, template.vectors_uri, template.shards)(xq)
    complete_collection(template, shards, chosen)
    manifest = draft(snapshot, encoder, shards, {"family": template.family}, run_key)
    asked, refusal = query_set_of(queries), None
    target = tuning_target(chosen.recall_target, asked)
    with scratch(run_key, "tune") as work:
        searcher = Searcher.open(manifest, locate_shards(shards, work), endpoint=chosen.endpoint)
        try:
            tuned = tuning.tune(searcher, xq, template.family, target, truth, index_config(chosen).budget)
        except tuning.TuningRefused as error:
            tuned = error.tuned
            if target > chosen.recall_target:
                why = (
                    f"{tuned.refused} ({target:.3f} is half the loss of {chosen.recall_target:.3f}, as the queries are synthetic)"
                )
                tuned = dataclasses.replace(tuned, refused=why)
            refusal = tuning.TuningRefused(tuned)
        tuned = dataclasses.replace(tuned, families=template.families, asked=describe(asked))
        for trial in tuned.trials:
            log.info(
                "%s recall@10 %.3f p50 %.2f ms: %s", trial["params"], trial["recall_at_10"], trial["p50_ms"], trial["verdict"]
            )
        _report(tuned, template, snapshot, run_key, target, work / "tuning")
    if refusal is not None:
        raise refusal
    return tuned


def _report(tuned: TuningResult, template: Template, snapshot: Snapshot, run_key: str, target: float, folder: Path) -> None:
    """Records the tuning table, its figures as JSON, and the plot (also of a refusal) in the version's run."""
    from tasks.index.tuning_report import tuning_plot, tuning_table

    folder.mkdir(exist_ok=True)
    (folder / "tuning.md").write_text(tuning_table(tuned))
    (folder / "tuning.json").write_text(json.dumps(tuned.to_json(), indent=1))
    if tuned.trials:
        tuning_plot(tuned, folder / "tuning.png", target)
    with registry().run(EXPERIMENT, run_key, f"index {snapshot.id}") as run:
        run.artifacts(folder, "tuning")
        run.params({"factory": template.factory, "template": template.reason})
