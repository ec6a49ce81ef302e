"""The steps of train_encoder."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.pipelines.common import as_snapshot, query_runtime, registry, settings, work_folder
from tasks.registry import ENCODER_MODEL, ENCODER_PATH, Registry, Version
from tasks.settings import Settings

if TYPE_CHECKING:
    from serving.contract.manifest import Gate
    from tasks.encoder.evaluate.evaluate import EncoderReport
    from tasks.encoder.evaluate.gates import EncoderPolicy

log = logging.getLogger(__name__)

EXPERIMENT = "encoders"
PROMOTED = "promoted_by"
"""The tag that a version gets when this pipeline makes it champion: the run's key."""


def plan(snapshot: dict, overrides: dict[str, Any], run_key: str) -> dict[str, Any]:
    """The training configuration of a run, and the existing version of the same recipe and data ("" for none).

    `overrides` holds what the form gave: preset (None for the setting's), epochs, alpha, photo_days (each None for the preset's own)
    and force. Raises TrainingError for what cannot be trained.
    """
    from tasks.encoder.data.photos import read_training_set
    from tasks.encoder.presets import preset
    from tasks.encoder.train.trained import recipe_key

    config = preset(overrides.get("preset") or settings().encoder_preset)
    window = overrides.get("photo_days")
    training = read_training_set(snapshot["uri"], max(0, window if window is not None else config.photo_days))
    photos = training.split("train")
    config = config.with_overrides(overrides.get("epochs"), overrides.get("alpha"), window, len(photos))
    recipe = recipe_key(config, as_snapshot(snapshot).content_sha256)
    found = {"preset": config.name, "recipe": recipe, "config": config.as_dict(), "existing": "", "forced": ""}
    existing = next((v for v in registry().versions(ENCODER_MODEL) if v.tags.get("recipe") == recipe), None)
    steps = (config.teacher_recipe.steps, config.student_recipe.steps)
    log.info("preset %s, %d train photos, alpha %g: %d and %d steps", config.name, len(photos), config.alpha, *steps)
    if training.orphans:
        log.info("%s", training.orphans)
    if overrides.get("force"):
        log.info("forced: trains again even if trained before")
        return found | {"forced": run_key}
    if existing is not None:
        log.info("version %s has this recipe and data: evaluating it without training", existing.version)
        return found | {"existing": existing.version}
    return found


def teacher(snapshot: dict, plan: dict, run_key: str) -> dict[str, Any]:
    return _train("teacher", snapshot, plan, None, run_key)


def student(snapshot: dict, plan: dict, teacher: dict, run_key: str) -> dict[str, Any]:
    return _train("student", snapshot, plan, teacher, run_key)


def _train(tower: str, snapshot: dict, plan: dict, teacher: dict | None, run_key: str) -> dict[str, Any]:
    """Trains one tower; losses, learning rate, images/s and system metrics go to MLflow."""
    from tasks.encoder.train.jobs import Job, train

    chosen = settings()
    job = Job.model_validate(
        {"tower": tower, "snapshot_uri": snapshot["uri"], "config": plan["config"], "work": str(_work(plan)), "teacher": teacher}
        | {"cache_bytes": round(chosen.pixel_cache_gb * 2**30), "workers": chosen.decoders}
        | {"max_unreadable": chosen.max_unreadable, "max_untrainable": chosen.max_untrainable}
    )
    name, tags = f"{tower} {plan['preset']}", {"recipe": plan["recipe"]}
    with registry().run(EXPERIMENT, f"{run_key}.{tower}", name, tags, system_metrics=True) as run:
        run.params({"snapshot": snapshot["id"], "preset": plan["preset"], "recipe": plan["recipe"]} | _flat(plan["config"]))
        trained = train(job, run.metric)
        run.metrics(_costs(trained))
    return trained.model_dump()


def export(snapshot: dict, plan: dict, teacher: dict, student: dict, run_key: str) -> str:
    """Exports all towers and registers them as one version; returns its number."""
    from serving.contract.graph_check import GraphCheck
    from tasks.encoder.export.export import export_encoder
    from tasks.encoder.presets import EncoderConfig
    from tasks.encoder.train.trained import TrainedTower

    check = GraphCheck(settings().graph_open_s, "VITRINE_GRAPH_OPEN_S")
    folder = work_folder(run_key) / ENCODER_PATH
    config = EncoderConfig.from_dict(plan["config"])
    towers = [TrainedTower.model_validate(t) for t in (teacher, student)]
    manifest = export_encoder(snapshot["uri"], towers[0], towers[1], config, _work(plan), folder, query_runtime(), check)
    models = registry()
    with models.run(EXPERIMENT, f"{run_key}.encoder", f"encoder {plan['preset']}", {"recipe": plan["recipe"]}) as run:
        run.params({"snapshot": snapshot["id"], "preset": plan["preset"], "recipe": plan["recipe"]} | _flat(plan["config"]))
        run.metrics(manifest.metrics)
        run.artifacts(folder, ENCODER_PATH)
        tags = {"recipe": plan["recipe"], "preset": plan["preset"], "snapshot": snapshot["id"], "run_key": run_key}
        text = f"{manifest.name}: documents by {manifest.document}, queries by {manifest.query}, {manifest.dim} dimensions"
        return models.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, tags, text).version


def judge(snapshot: dict, version: str, run_key: str) -> dict[str, Any]:
    """Evaluates a version and the champion on the same photos and decides; reasons go to MLflow and the log.

    A version that was champion before and is not now was replaced by a person, or by a better one: it stays replaced.
    """
    models = registry()
    champion, found = models.alias(ENCODER_MODEL, "champion"), models.version(ENCODER_MODEL, version)
    against = champion.version if champion is not None else ""
    decided: dict[str, Any] = {"version": version, "promote": False, "against": against, "failed": []}
    summary = ""
    if champion is not None and champion.version == version:
        summary = (
            f"encoder version {version} is the champion already; it was trained on this data with this recipe, nothing to do"
        )
    elif PROMOTED in found.tags:
        summary = (
            f"encoder version {version} was champion before (since {found.tags[PROMOTED]}) and the alias was moved away from it: that "
            "is respected; to train this recipe again, start the DAG with force, to have this version back, move the alias"
        )
    if summary:
        log.info("%s", summary)
        return decided | {"summary": summary}
    gates, report = _measure(models, snapshot, found, champion, run_key)
    failed = [g for g in gates if not g.passed]
    for gate in gates:
        log.info("%s %s: %s", "passed" if gate.passed else "FAILED", gate.name, gate.reason)
    served = report.pair(report.query)
    recall = ", ".join(f"Recall@{k} {served.recall[f'recall_at_{k}'].value:.3f}" for k in (1, 10)) if served else ""
    outcome = "fails: " + "; ".join(g.reason for g in failed) if failed else f"passes all {len(gates)} gates"
    summary = f"encoder version {version} ({report.query}: {recall}) {outcome}"
    models.set_alias(ENCODER_MODEL, "challenger", version)
    models.tag_version(ENCODER_MODEL, version, "verdict", "failed: " + "; ".join(g.name for g in failed) if failed else "passed")
    models.tag_version(ENCODER_MODEL, version, "decision", summary[:5000])
    with models.run(EXPERIMENT, f"{run_key}.judge", f"judge version {version}", {"encoder_run": found.run_id}) as run:
        run.tag("decision", summary[:5000])
        run.tag("against", against or "no champion")
        run.metrics(report.flat() | {f"gate.{g.name}": g.value for g in gates})
        run.artifacts(work_folder(run_key) / "report", "report")
    return decided | {"promote": not failed, "summary": summary, "failed": [g.model_dump() for g in failed]}


def _measure(
    models: Registry, snapshot: dict, found: Version, champion: Version | None, run_key: str
) -> "tuple[tuple[Gate, ...], EncoderReport]":
    """Gates of a version against the champion, and its evaluation; writes the report and gates.json."""
    from serving.contract.encoder import EncoderFolder
    from tasks.encoder.data.pixels import Decoding
    from tasks.encoder.evaluate.evaluate import evaluate_encoder
    from tasks.encoder.evaluate.gates import encoder_gates
    from tasks.encoder.evaluate.report import write_report
    from tasks.encoder.evaluate.speedup import FASTER, measure_speedup

    chosen, work = settings(), _work({})
    decoding = Decoding(round(chosen.pixel_cache_gb * 2**30), chosen.decoders, chosen.max_unreadable)
    folder = models.encoder_folder(found.version)
    report = evaluate_encoder(folder, snapshot["uri"], work, baselines=True, decoding=decoding)
    faster = measure_speedup(EncoderFolder(folder), report.query, "teacher.fp32")
    report = report.model_copy(update={"metrics": report.metrics | {FASTER: faster}})
    other = None
    if champion is not None:
        champion_folder = models.encoder_folder(champion.version)
        other = evaluate_encoder(champion_folder, snapshot["uri"], work, baselines=False, decoding=decoding)
    gates = encoder_gates(report, other, policy_of(chosen))
    target = work_folder(run_key) / "report"
    write_report(folder, report, gates, snapshot["uri"], work, target)
    (target / "gates.json").write_text(json.dumps([g.model_dump() for g in gates], indent=1))
    return gates, report


def policy_of(chosen: Settings) -> "EncoderPolicy":
    """The thresholds from the settings; others keep the policy's defaults."""
    from tasks.encoder.evaluate.gates import EncoderPolicy

    return EncoderPolicy(
        student_share=chosen.min_student_recall, int8_share=chosen.min_int8_recall, champion_margin=chosen.max_recall_loss,
        slice_margin=chosen.max_slice_loss, smaller=chosen.min_student_compression, faster=chosen.min_student_speedup,
    )  # fmt: skip


def promote(decision: dict, run_key: str) -> dict[str, Any]:
    """Makes the evaluated version champion, unless the alias moved since the evaluation; the outcome is in "summary".

    The version was not measured against what that person chose, so the person's choice stands. Run again, it does nothing.
    """
    models, version = registry(), decision["version"]
    now = models.alias(ENCODER_MODEL, "champion")
    current = now.version if now is not None else ""
    if current not in (decision["against"], version):
        summary = (
            f"the champion was moved to version {current or 'none'} since version {version} was judged against "
            f"{decision['against'] or 'none'}: that is respected, and version {version} stays challenger; run the DAG again to judge it "
            "against the new champion"
        )
        log.info("%s", summary)
        return {"promoted": False, "version": version, "summary": summary}
    models.set_alias(ENCODER_MODEL, "champion", version)
    models.tag_version(ENCODER_MODEL, version, PROMOTED, run_key)
    return {"promoted": True, "version": version, "summary": decision["summary"]}


def _work(plan: dict) -> Path:
    """The folder of pixel caches and checkpoints, keyed by content, so runs share it; a forced training has its own."""
    folder = settings().home / "work" / (f"encoder-{plan['forced']}" if plan.get("forced") else "encoder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names, as MLflow parameters."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _costs(trained: Any) -> dict[str, float]:
    names = ("steps", "parameters", "final_loss", "seconds", "cpu_seconds", "images_per_s", "peak_memory_bytes")
    return {f"cost.{name}": float(getattr(trained, name)) for name in names}
