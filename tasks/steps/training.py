"""The steps of train_encoder."""

import logging
from pathlib import Path
from typing import Any

from tasks.registry import ENCODER_MODEL, ENCODER_PATH
from tasks.steps.common import as_snapshot, query_runtime, registry, settings, work_folder

log = logging.getLogger(__name__)

EXPERIMENT = "encoders"


def plan(snapshot: dict, preset_name: str, force: bool, run_key: str) -> dict[str, Any]:
    """Which recipe to train, and the version that was already trained with it on the same data ("" when none was)."""
    from tasks.encoder.presets import preset
    from tasks.encoder.trained import recipe_key

    name = preset_name or settings().encoder_preset
    recipe = recipe_key(preset(name), as_snapshot(snapshot).content_sha256)
    existing = next((v for v in registry().versions(ENCODER_MODEL) if v.tags.get("recipe") == recipe), None)
    if existing is not None and not force:
        log.info("version %s was trained with this recipe on this data: it is judged as it is", existing.version)
        return {"preset": name, "recipe": recipe, "existing": existing.version}
    return {"preset": name, "recipe": recipe, "existing": ""}


def teacher(snapshot: dict, plan: dict, run_key: str) -> dict[str, Any]:
    from tasks.encoder.presets import preset
    from tasks.encoder.teacher import train_teacher

    config = preset(plan["preset"])
    with registry().run(EXPERIMENT, f"{run_key}.teacher", f"teacher {plan['preset']}", {"recipe": plan["recipe"]}) as run:
        run.params({"preset": plan["preset"], "recipe": plan["recipe"], "snapshot": snapshot["id"]})
        trained = train_teacher(snapshot["uri"], config, _work(), run.metric)
        run.metrics(_costs(trained))
    return trained.model_dump()


def student(snapshot: dict, plan: dict, teacher: dict, run_key: str) -> dict[str, Any]:
    from tasks.encoder.presets import preset
    from tasks.encoder.student import distil_student
    from tasks.encoder.trained import TrainedTower

    config = preset(plan["preset"])
    with registry().run(EXPERIMENT, f"{run_key}.student", f"student {plan['preset']}", {"recipe": plan["recipe"]}) as run:
        run.params(
            {"preset": plan["preset"], "recipe": plan["recipe"], "alpha": config.alpha, "temperature": config.kl_temperature}
        )
        trained = distil_student(snapshot["uri"], TrainedTower.model_validate(teacher), config, _work(), run.metric)
        run.metrics(_costs(trained))
    return trained.model_dump()


def export(snapshot: dict, plan: dict, teacher: dict, student: dict, run_key: str) -> str:
    """Exports both towers and the text tower, and registers them as one version; gives its number."""
    from tasks.encoder.export import export_encoder
    from tasks.encoder.presets import preset
    from tasks.encoder.trained import TrainedTower

    folder = work_folder(run_key) / ENCODER_PATH
    config = preset(plan["preset"])
    towers = [TrainedTower.model_validate(t) for t in (teacher, student)]
    manifest = export_encoder(snapshot["uri"], towers[0], towers[1], config, _work(), folder, query_runtime())
    models = registry()
    with models.run(EXPERIMENT, f"{run_key}.encoder", f"encoder {plan['preset']}", {"recipe": plan["recipe"]}) as run:
        run.params({"preset": plan["preset"], "recipe": plan["recipe"], "snapshot": snapshot["id"], "dim": manifest.dim})
        run.metrics(manifest.metrics)
        run.artifacts(folder, ENCODER_PATH)
        tags = {"recipe": plan["recipe"], "preset": plan["preset"], "snapshot": snapshot["id"], "run_key": run_key}
        text = f"{manifest.name}: documents by {manifest.document}, queries by {manifest.query}, {manifest.dim} dimensions"
        return models.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, tags, text).version


def judge(snapshot: dict, version: str, run_key: str) -> dict[str, Any]:
    """Measures a version and the champion on the same photos and decides; the reasons go to MLflow and the log."""
    models = registry()
    champion = models.alias(ENCODER_MODEL, "champion")
    if champion is not None and champion.version == version:
        summary = (
            f"encoder version {version} is the champion already; it was trained on this data with this recipe, nothing to do"
        )
        log.info("%s", summary)
        return {"version": version, "promote": False, "summary": summary}
    from tasks.encoder.evaluate import evaluate_encoder
    from tasks.encoder.gates import EncoderPolicy, encoder_gates
    from tasks.encoder.report import write_report

    report = evaluate_encoder(models.encoder_folder(version), snapshot["uri"], _work(), baselines=True)
    other = None
    if champion is not None:
        other = evaluate_encoder(models.encoder_folder(champion.version), snapshot["uri"], _work(), baselines=False)
    gates = encoder_gates(report, other, EncoderPolicy())
    failed = [g for g in gates if not g.passed]
    for gate in gates:
        log.info("%s %s: %s", "passed" if gate.passed else "FAILED", gate.name, gate.reason)
    models.set_alias(ENCODER_MODEL, "challenger", version)
    found = models.version(ENCODER_MODEL, version)
    folder = work_folder(run_key)
    write_report(models.encoder_folder(version), report, gates, snapshot["uri"], _work(), folder / "report")
    with models.run(EXPERIMENT, f"{run_key}.judge", f"judge version {version}", {"encoder_run": found.run_id}) as run:
        run.metrics(report.flat())
        run.artifacts(folder / "report", "report")
    models.tag_version(ENCODER_MODEL, version, "verdict", "failed: " + "; ".join(g.name for g in failed) if failed else "passed")
    serving = report.pair(report.query)
    recall = (
        f"Recall@1 {serving.recall['recall_at_1'].value:.3f}, Recall@10 {serving.recall['recall_at_10'].value:.3f}"
        if serving
        else ""
    )
    outcome = "fails: " + "; ".join(g.reason for g in failed) if failed else f"passes all {len(gates)} gates"
    return {
        "version": version,
        "promote": not failed,
        "summary": f"encoder version {version} ({report.query}: {recall}) {outcome}",
    }


def promote(decision: dict) -> None:
    registry().set_alias(ENCODER_MODEL, "champion", decision["version"])


def _work() -> Path:
    """Pixel caches and checkpoints: keyed by content below it, so all runs share one folder."""
    folder = settings().home / "work" / "encoder"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _costs(trained: Any) -> dict[str, float]:
    names = ("steps", "parameters", "final_loss", "seconds", "cpu_seconds", "images_per_s", "peak_memory_bytes")
    return {f"cost.{name}": float(getattr(trained, name)) for name in names}
