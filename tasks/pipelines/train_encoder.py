"""The steps of train_encoder."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.contract.binding import GATES_VERDICT, verdict_of
from tasks import storage
from tasks.catalog.snapshot import Snapshot
from tasks.encoder.train.tower_record import TrainedTower
from tasks.errors import TrainingError
from tasks.pipelines.common import query_runtime, registry, scratch, settings
from tasks.pipelines.encoder_records import ChampionDecision, ChampionPromotion, TrainingPlan
from tasks.queries.query_words import describe
from tasks.registry import ENCODER_MODEL, ENCODER_PATH, Registry, Version
from tasks.registry.binding import binding_tags, signed, signing_key
from tasks.settings import Settings
from tasks.worker_disk import encoder_work

if TYPE_CHECKING:
    from serving.contract.manifest import Gate
    from tasks.encoder.evaluate.evaluate import EncoderReport
    from tasks.encoder.evaluate.gates import EncoderPolicy

log = logging.getLogger(__name__)

EXPERIMENT = "encoders"
PROMOTED = "promoted_by"
"""The tag that a version gets when this pipeline makes it champion: the run's key."""


def plan(snapshot: Snapshot, overrides: dict[str, Any], run_key: str) -> TrainingPlan:
    """The training configuration of a run, and the existing version of the same recipe and data ("" for none).

    `overrides` holds what the form gave: preset (an encoder by name, see tasks/encoder/lookup.py; None for the setting's), training,
    student, epochs, alpha, photo_days (each None for the preset's own) and force. Without train photos a pretrained encoder is taken
    as it is, without a student, unless epochs (or a student) are given. Raises TrainingError for what cannot be trained.
    """
    from tasks.encoder.data.photos import read_training_set
    from tasks.encoder.lookup import choose_training, find_encoder, without_labels
    from tasks.encoder.train.origin import with_checksums
    from tasks.encoder.train.tower_store import recipe_key

    config = find_encoder(overrides.get("preset") or settings().encoder_preset)
    config = choose_training(config, overrides.get("training"), overrides.get("student"))
    window = overrides.get("photo_days")
    training = read_training_set(snapshot.uri, max(0, window if window is not None else config.photo_days))
    photos = training.split("train")
    if not len(photos):
        config = without_labels(config, overrides.get("epochs"), overrides.get("student"))
    pictures = len(photos) or len(training.image_uris)
    config = config.with_overrides(overrides.get("epochs"), overrides.get("alpha"), window, pictures)
    config = with_checksums(config)
    recipe = recipe_key(config, snapshot.content_sha256)
    made = TrainingPlan(config.name, recipe, config.as_dict())
    existing = next((v for v in registry().versions(ENCODER_MODEL) if v.tags.get("recipe") == recipe), None)
    steps = (config.teacher_recipe.steps, config.student_recipe.steps if config.student else 0)
    log.info("encoder %s: teacher %s, student %s", config.name, config.teacher, config.student)
    log.info("%d train photos, alpha %g: %d and %d steps", len(photos), config.alpha, *steps)
    if training.orphans:
        log.info("%s", training.orphans)
    if overrides.get("force"):
        log.info("forced: trains again even if trained before")
        return replace(made, forced=run_key)
    if existing is not None:
        log.info("version %s has this recipe and data: evaluating it without training", existing.version)
        return replace(made, existing=existing.version)
    return made


def train_teacher(snapshot: Snapshot, plan: TrainingPlan, run_key: str) -> TrainedTower:
    """Trains the teacher."""
    return _train("teacher", snapshot, plan, None, run_key)


def distil_student(snapshot: Snapshot, plan: TrainingPlan, teacher: TrainedTower, run_key: str) -> TrainedTower | None:
    """Distils the student from the teacher; None where the version has none."""
    student = plan.config["student"]
    if not (student["timm"] or student["open_clip"]):
        log.info("no student: the teacher embeds queries, too")
        return None
    return _train("student", snapshot, plan, teacher, run_key)


def _train(tower: str, snapshot: Snapshot, plan: TrainingPlan, teacher: TrainedTower | None, run_key: str) -> TrainedTower:
    """Trains one tower and leaves it in the store; losses, learning rate, images/s and system metrics go to MLflow.

    A tower that an earlier attempt stored is returned as it is; else an attempt on any worker goes on from the last checkpoint.
    """
    from tasks.encoder.train.jobs import Job, train
    from tasks.encoder.train.tower_store import find_trained, store_tower

    chosen = settings()
    uri = storage.join(chosen.store_uri, "towers", plan.forced or plan.recipe, tower)
    stored = find_trained(uri, f"{tower}-{plan.recipe}")
    if stored is not None:
        return stored
    job = Job.model_validate({
        "tower": tower, "snapshot_uri": snapshot.uri, "config": plan.config, "work": str(_work(plan.forced)), "teacher": teacher,
        "checkpoints": storage.join(uri, "steps"), "cache_bytes": round(chosen.pixel_cache_gb * 2**30), "workers": chosen.decoders,
        "max_unreadable": chosen.max_unreadable, "max_untrainable": chosen.max_untrainable,
    })  # fmt: skip
    name, tags = f"{tower} {plan.preset}", {"recipe": plan.recipe}
    with registry().run(EXPERIMENT, f"{run_key}.{tower}", name, tags, system_metrics=True) as run:
        run.params({"snapshot": snapshot.id, "preset": plan.preset, "recipe": plan.recipe} | _flat(plan.config))
        trained = train(job, run.metric)
        run.metrics(_costs(trained))
    stored = store_tower(trained, uri)
    storage.delete_folder(job.checkpoints)
    shutil.rmtree(storage.local_path(trained.uri))
    return stored


def export_encoder(
    snapshot: Snapshot, plan: TrainingPlan, teacher: TrainedTower, student: TrainedTower | None, run_key: str
) -> str:
    """Exports all towers and registers them as one version; returns its number."""
    from serving.contract.graph_check import GraphCheck
    from tasks.encoder.config import EncoderConfig
    from tasks.encoder.export import export

    check = GraphCheck(settings().graph_open_s, "VITRINE_GRAPH_OPEN_S")
    config, models = EncoderConfig.from_dict(plan.config), registry()
    made = next((v for v in models.versions(ENCODER_MODEL) if v.tags.get("run_key") == run_key), None)
    if made is not None:  # a version is bound to the manifest it was registered with, so it is not made anew
        return made.version
    with scratch(run_key, "export") as work:
        folder = work / ENCODER_PATH
        manifest = export.export_encoder(
            snapshot.uri, teacher, student, config, _work(plan.forced), folder, query_runtime(), check,
            int8_share=settings().min_int8_recall,
        )  # fmt: skip
        data = signed(manifest, signing_key(settings())).to_json().encode()
        (folder / "encoder.json").write_bytes(data)
        with models.run(EXPERIMENT, f"{run_key}.encoder", f"encoder {plan.preset}", {"recipe": plan.recipe}) as run:
            run.params({"snapshot": snapshot.id, "preset": plan.preset, "recipe": plan.recipe} | _flat(plan.config))
            run.artifacts(
                folder, ENCODER_PATH
            )  # manifest.metrics are in encoder.json; what people compare comes with the judgement
            tags = {"recipe": plan.recipe, "preset": plan.preset, "snapshot": snapshot.id, "run_key": run_key}
            tags |= binding_tags(data)
            text = f"{manifest.name}: documents by {manifest.document}, queries by {manifest.query}, {manifest.dim} dimensions"
            return models.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, tags, text).version


def judge(snapshot: Snapshot, plan: TrainingPlan, exported: str | None, run_key: str) -> ChampionDecision:
    """Evaluates the plan's existing version, or the `exported` one, against the champion; reasons go to its page in MLflow and the log.

    A version that was champion before and is not now was replaced by a person, or by a better one: it stays replaced.
    """
    models, version = registry(), plan.existing or exported
    if not version:
        raise TrainingError("there is no encoder version to judge: the step export_encoder returned none; clear it")
    champion, found = models.alias(ENCODER_MODEL, "champion"), models.version(ENCODER_MODEL, version)
    against = champion.version if champion is not None else ""
    summary = ""
    if champion is not None and champion.version == version:
        summary = (
            f"encoder version {version} is the champion already; it was trained on this data with this recipe, nothing to do"
        )
    elif PROMOTED in found.tags:
        summary = (
            f"encoder version {version} was champion before (since {found.tags[PROMOTED]}) and was replaced, so it is not promoted again; "
            "to use it, move the alias champion back to it; to train the recipe anew, start the DAG with 'Train again'"
        )
    if summary:
        log.info("%s", summary)
        return ChampionDecision(version, False, against, summary)
    with scratch(run_key, "judge") as folder:
        return _judge(models, snapshot, found, champion, run_key, folder / "report")


def _judge(
    models: Registry, snapshot: Snapshot, found: Version, champion: Version | None, run_key: str, folder: Path
) -> ChampionDecision:
    """Evaluates a version and decides; the report, written in `folder`, and the decision go to MLflow, onto the version too."""
    from tasks.encoder.evaluate.summary_metrics import headline_metrics

    version, against = found.version, champion.version if champion is not None else ""
    gates, report = _measure(models, snapshot, found, champion, folder)
    failed = [g for g in gates if not g.passed]
    for gate in gates:
        log.info("%s %s: %s", "passed" if gate.passed else "FAILED", gate.name, gate.reason)
    served = report.pair(report.query)
    recall = ", ".join(f"Recall@{k} {served.recall[f'recall_at_{k}'].value:.3f}" for k in (1, 10)) if served else ""
    recall += f" on {describe(report.queries)}" if report.queries and report.queries.synthetic else ""
    outcome = "fails: " + "; ".join(g.reason for g in failed) if failed else f"passes all {len(gates)} gates"
    summary = f"encoder version {version} ({report.query}: {recall}) {outcome}"
    models.set_alias(ENCODER_MODEL, "challenger", version)
    models.tag_version(ENCODER_MODEL, version, "verdict", "failed: " + "; ".join(g.name for g in failed) if failed else "passed")
    short = f"{len(failed)} of {len(gates)} gates failed" if failed else f"all {len(gates)} gates passed"
    models.tag_version(ENCODER_MODEL, version, GATES_VERDICT, verdict_of(gates))
    models.tag_version(ENCODER_MODEL, version, "decision", short)
    with models.run(EXPERIMENT, f"{run_key}.judge", f"judge version {version}", {"encoder_run": found.run_id}) as run:
        run.tag("decision", summary[:5000])
        run.tag("against", against or "no champion")
        run.metrics(headline_metrics(report, gates))
        run.artifacts(folder, "report")
    _write_version_page(models, found, report, gates, summary, folder)
    return ChampionDecision(version, not failed, against, summary, failed)


def _write_version_page(
    models: Registry, found: Version, report: "EncoderReport", gates: "tuple[Gate, ...]", summary: str, folder: Path
) -> None:
    """Puts the judgement on the version itself: its page, and in its own run the report and the figures people compare."""
    from serving.contract.encoder import EncoderFolder
    from tasks.encoder.evaluate.card import facts
    from tasks.encoder.evaluate.summary_metrics import headline_figures, headline_metrics
    from tasks.registry.version_page import version_page

    manifest = EncoderFolder(models.encoder_folder(found.version)).manifest
    models.log_artifacts(found.run_id, folder, "report")
    models.log_metrics(found.run_id, headline_metrics(report, gates))
    links = {
        name: models.artifact_url(found.run_id, f"report/{file}")
        for name, file in {"Report": "report.html", "Model card": "card.md", "All figures": "report.json"}.items()
    }
    page = version_page(summary, headline_figures(manifest, report), gates, links, facts(manifest, report))
    models.describe(found, page)


def _measure(
    models: Registry, snapshot: Snapshot, found: Version, champion: Version | None, folder: Path
) -> "tuple[tuple[Gate, ...], EncoderReport]":
    """Gates of a version against the champion, and its evaluation; writes the report and gates.json in `folder`."""
    from serving.contract.encoder import EncoderFolder
    from tasks.encoder.data.pixels import Decoding
    from tasks.encoder.evaluate.evaluate import evaluate_encoder
    from tasks.encoder.evaluate.gates import encoder_gates
    from tasks.encoder.evaluate.report import write_report
    from tasks.encoder.evaluate.speedup import FASTER, measure_speedup

    chosen, work = settings(), _work()
    decoding = Decoding(round(chosen.pixel_cache_gb * 2**30), chosen.decoders, chosen.max_unreadable)
    encoder = models.encoder_folder(found.version)
    report = evaluate_encoder(encoder, snapshot.uri, work, baselines=True, decoding=decoding)
    if report.has("student") and report.has("teacher"):
        faster = measure_speedup(EncoderFolder(encoder), report.query, "teacher.fp32")
        report = report.model_copy(update={"metrics": report.metrics | {FASTER: faster}})
    other = None
    if champion is not None:
        champion_folder = models.encoder_folder(champion.version)
        other = evaluate_encoder(champion_folder, snapshot.uri, work, baselines=False, decoding=decoding)
    gates = encoder_gates(report, other, policy_of(chosen))
    write_report(encoder, report, gates, snapshot.uri, work, folder)
    (folder / "gates.json").write_text(json.dumps([g.model_dump() for g in gates], indent=1))
    return gates, report


def policy_of(chosen: Settings) -> "EncoderPolicy":
    """The thresholds from the settings; others keep the policy's defaults."""
    from tasks.encoder.evaluate.gates import EncoderPolicy

    return EncoderPolicy(
        student_share=chosen.min_student_recall, int8_share=chosen.min_int8_recall, champion_margin=chosen.max_recall_loss,
        slice_margin=chosen.max_slice_loss, smaller=chosen.min_student_compression, faster=chosen.min_student_speedup,
    )  # fmt: skip


def promote_champion(decision: ChampionDecision, run_key: str) -> ChampionPromotion:
    """Makes the evaluated version champion, unless the alias moved since the evaluation; `summary` says why it did not.

    The version was not measured against what that person chose, so the person's choice stands. Run again, it does nothing.
    """
    models, version = registry(), decision.version
    now = models.alias(ENCODER_MODEL, "champion")
    current = now.version if now is not None else ""
    if current not in (decision.against, version):
        summary = (
            f"version {version} is not promoted: it was compared with champion version {decision.against or 'none'}, and meanwhile "
            f"version {current or 'none'} became champion; run the DAG again to compare it with that one"
        )
        log.info("%s", summary)
        return ChampionPromotion(False, version, summary)
    models.set_alias(ENCODER_MODEL, "champion", version)
    models.tag_version(ENCODER_MODEL, version, PROMOTED, run_key)
    return ChampionPromotion(True, version, decision.summary)


def _work(forced: str = "") -> Path:
    return encoder_work(settings().home, forced)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names, as MLflow parameters."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _costs(trained: Any) -> dict[str, float]:
    names = ("steps", "parameters", "final_loss", "seconds", "cpu_seconds", "images_per_s", "peak_memory_bytes")
    return {f"cost.{name}": float(getattr(trained, name)) for name in names}
