"""The steps of watch_quality."""

import logging
import time
from dataclasses import asdict, dataclass
from typing import Any

from tasks.pipelines.common import registry, replicas_of, scratch, settings
from tasks.records import Record
from tasks.registry import INDEX_MODEL

log = logging.getLogger(__name__)

EXPERIMENT = "watch"


@dataclass(frozen=True)
class QualityReport(Record):
    """The checks of the live version: whether all passed, and why it should be rebuilt (`compaction`, "" when it need not be)."""

    version: str
    passed: bool
    summary: str
    compaction: str
    figures: dict[str, Any]
    links: dict[str, str]


def measure(run_key: str) -> QualityReport:
    """Measures and checks the live version; figures and plots go to MLflow, one run per index version, a step per hour."""
    from tasks.watch.checks import Limits, checks
    from tasks.watch.cost import Prices
    from tasks.watch.live_metrics import measure_live as look_at
    from tasks.watch.watch_report import write_report

    chosen = settings()
    models = registry(chosen)
    now = time.time()
    prices = Prices(chosen.price_core_hour, chosen.price_gpu_hour)
    seen = look_at(models, replicas_of(chosen), chosen.store_uri, prices, now)
    figures = seen.figures
    limits = Limits(live_recall=chosen.recall_target, age_s=3600.0 * chosen.most_age_h, p99_ms=chosen.p99_ms)
    table = checks(figures, limits)
    with (
        models.run(EXPERIMENT, f"watch-{figures.version}", f"index version {figures.version}") as run,
        scratch(run_key, "watch") as folder,
    ):
        for name, value in figures.flat().items():
            run.metric(name, value, round(now / 60))
        for path in write_report(seen, table, folder):
            run.artifact(path, time.strftime("%Y-%m-%dT%H%M", time.gmtime(now)))
        page = models.run_url(run.run_id)
    for note in figures.notes:
        log.info("%s", note)
    for gate in table:
        log.info("%s %s: %s", "passed" if gate.passed else "FAILED", gate.name, gate.reason)
    failed = [gate.reason for gate in table if not gate.passed]
    state = "; ".join(failed) if failed else f"all {len(table)} checks passed"
    summary = f"index version {figures.version}: {state}"
    log.info("%s", summary)
    links = {"MLflow run": page, "Model version": models.version_url(INDEX_MODEL, figures.version)}
    return QualityReport(figures.version, not failed, summary, figures.compaction, asdict(figures), links)
