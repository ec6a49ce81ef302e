"""MLflow runs: one per key, with batched metrics."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.contract.addresses import without_userinfo
from serving.contract.binding import BindingPolicy
from serving.index.collection import NOWHERE, Endpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_KEY = "vitrine.run_key"
EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")
"""MLflow's own tag of an experiment, by which its UI says model training or GenAI where it has no switch for it."""
TRAINING = "?workflowType=machine_learning"
"""Ends an address of MLflow's UI. Since 3.x a switch in the browser decides, which begins at GenAI; this asks for model training."""
ORIGIN_NAME = "airflow.run"
ORIGIN_URL = "airflow.url"
METRIC_BATCH = 500
METRIC_EVERY_S = 10.0
"""Metrics are sent when so many wait, or the oldest has waited so long: a training's curve is live, and cheap."""
SYSTEM_EVERY_S = 10.0


@dataclass(frozen=True)
class Origin:
    """Where a run or version was made (a DAG run), shown in MLflow: name and URL."""

    name: str
    url: str

    @property
    def markdown(self) -> str:
        return f"[{self.name}]({self.url})"


@dataclass(frozen=True)
class RunRef:
    """A run: its key, and its end time (epoch seconds), or its start time while it runs."""

    run_id: str
    key: str
    at_s: float


@dataclass(frozen=True)
class MeasuredRun(RunRef):
    """A run with the newest value of each metric, and its tags."""

    metrics: dict[str, float]
    tags: dict[str, str]


class Run:
    """An open MLflow run. Metrics are batched; `flush` sends the rest."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.waiting: list[Any] = []
        self.sent = time.monotonic()

    def metric(self, name: str, value: float, step: int = 0) -> None:
        from mlflow.entities import Metric

        self.waiting.append(Metric(name, float(value), int(time.time() * 1000), step))
        if len(self.waiting) >= METRIC_BATCH or time.monotonic() - self.sent > METRIC_EVERY_S:
            self.flush()

    def metrics(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.metric(name, value)

    def log_now(self, values: dict[str, float]) -> None:
        """Sends metrics at once, past those that wait; may be called in another thread."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, float(value), now, 0) for name, value in values.items()])

    def params(self, values: dict[str, Any]) -> None:
        """Logs parameters; MLflow raises when one was logged with another value."""
        from mlflow.entities import Param

        self.client.log_batch(self.run_id, params=[Param(k, str(v)[:6000]) for k, v in values.items()])

    def tag(self, name: str, value: str) -> None:
        self.client.set_tag(self.run_id, name, value)

    def artifact(self, path: Path, folder: str = "") -> None:
        self.client.log_artifact(self.run_id, str(path), folder or None)

    def artifacts(self, path: Path, folder: str = "") -> None:
        self.client.log_artifacts(self.run_id, str(path), folder or None)

    def flush(self) -> None:
        if self.waiting:
            self.client.log_batch(self.run_id, metrics=self.waiting)
            self.waiting = []
        self.sent = time.monotonic()


class Runs:
    """Runs of a tracking server. The constructor is the Registry's (tasks/registry/artifacts.py)."""

    def __init__(
        self, uri: str, cache: Path, page: str = "", origin: Origin | None = None, trust: BindingPolicy | None = None,
        endpoint: Endpoint = NOWHERE,
    ) -> None:  # fmt: skip
        # MLflow draws a bar for every file it fetches, unless it is told not to before it is imported.
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        if without_userinfo(uri) != uri:  # it prints the address of each run that ends
            os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        from mlflow import MlflowClient

        self.uri, self.cache, self.page, self.origin = uri, cache, without_userinfo(page or uri).rstrip("/"), origin
        self.trust, self.endpoint = trust or BindingPolicy(), endpoint
        self.verified: dict[Path, tuple[int, int, int] | None] = {}
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    @contextmanager
    def run(
        self, experiment: str, key: str, name: str, tags: dict[str, str] | None = None, system_metrics: bool = False
    ) -> Iterator[Run]:
        """Opens the run with this key in the experiment: that of a killed attempt, or a new one.

        With `system_metrics`, MLflow's own monitor logs processor, memory, disk, network and GPU beside the run's metrics.
        """
        run_id = self._find_run(experiment, key) or self._new_run(experiment, key, name)
        self.client.update_run(run_id, status="RUNNING")
        with self._monitored(run_id) if system_metrics else nullcontext():
            yield from self._in_run(run_id, tags)

    def _in_run(self, run_id: str, tags: dict[str, str] | None) -> Iterator[Run]:
        run = Run(self.client, run_id)
        for tag, value in (self._origin_tags() | (tags or {})).items():
            run.tag(tag, value)
        try:
            yield run
        except BaseException:
            run.flush()
            self.client.set_terminated(run_id, "FAILED")
            raise
        run.flush()
        self.client.set_terminated(run_id, "FINISHED")

    @contextmanager
    def _monitored(self, run_id: str) -> Iterator[None]:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, SYSTEM_EVERY_S, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if EXPERIMENT_KIND[0] not in found.tags:  # made before the tag was set
                self.client.set_experiment_tag(found.experiment_id, *EXPERIMENT_KIND)
            return found.experiment_id
        try:
            return self.client.create_experiment(name, tags=dict([EXPERIMENT_KIND]))
        except MlflowException:  # another task made it in the meantime
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def _find_run(self, experiment: str, key: str) -> str | None:
        runs = self.client.search_runs([self._experiment_id(experiment)], f"tags.`{RUN_KEY}` = '{key}'", max_results=1)
        return runs[0].info.run_id if runs else None

    def _new_run(self, experiment: str, key: str, name: str) -> str:
        run = self.client.create_run(self._experiment_id(experiment), run_name=name, tags={RUN_KEY: key})
        return run.info.run_id

    def _origin_tags(self) -> dict[str, str]:
        return {ORIGIN_NAME: self.origin.name, ORIGIN_URL: self.origin.url} if self.origin else {}

    def run_url(self, run_id: str) -> str:
        """URL of a run in MLflow's UI."""
        return f"{self.page}/#/runs/{run_id}{TRAINING}"

    def artifact_url(self, run_id: str, path: str) -> str:
        """URL of a run's artifact in MLflow's UI."""
        return f"{self.page}/#/runs/{run_id}/artifactPath/{path}{TRAINING}"

    def runs(self, experiment: str, without_tag: str) -> list[RunRef]:
        """All runs of an experiment without a tag; [] when the experiment does not exist."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        made: list[RunRef] = []
        page: str | None = ""
        while page is not None:
            answer = self.client.search_runs([found.experiment_id], max_results=1000, page_token=page or None)
            made += [
                RunRef(r.info.run_id, r.data.tags.get(RUN_KEY, ""), (r.info.end_time or r.info.start_time) / 1e3)
                for r in answer
                if without_tag not in r.data.tags
            ]
            page = answer.token or None
        return made

    def latest_metrics(self, experiment: str, having: str, names: Sequence[str]) -> dict[str, float]:
        """Metrics of the experiment's newest run that has the metric `having`; {} without one."""
        found = self.newest_measured(experiment, having)
        return {name: found.metrics[name] for name in names if name in found.metrics} if found else {}

    def newest_measured(
        self, experiment: str, having: str = "", above: float = 0, tags: Mapping[str, str] | None = None
    ) -> MeasuredRun | None:
        """The experiment's newest run whose metric `having` is above a number ("" for any) and whose tags are these ("": any value)."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return None
        terms = [f"metrics.`{having}` > {above:g}"] if having else []
        terms += [f"tags.`{tag}` = '{value}'" if value else f"tags.`{tag}` LIKE '%'" for tag, value in (tags or {}).items()]
        runs = self.client.search_runs(
            [found.experiment_id], " and ".join(terms), max_results=1, order_by=["attributes.start_time DESC"]
        )
        if not runs:
            return None
        data, info = runs[0].data, runs[0].info
        at_s = (info.end_time or info.start_time) / 1e3
        return MeasuredRun(info.run_id, data.tags.get(RUN_KEY, ""), at_s, dict(data.metrics), dict(data.tags))

    def log_metrics(self, run_id: str, values: dict[str, float]) -> None:
        """Logs metrics to a run that may have ended."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(run_id, metrics=[Metric(name, float(value), now, 0) for name, value in values.items()])

    def log_artifacts(self, run_id: str, folder: Path, path: str) -> None:
        """Adds a folder's files to a run that may have ended, below `path`; files of the same name are replaced."""
        self.client.log_artifacts(run_id, str(folder), path)

    def newest_runs(self, experiment: str, tag: str, limit: int) -> dict[str, str]:
        """The newest run id by value of a tag, among the experiment's newest `limit` runs that have it; {} without any."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return {}
        runs = self.client.search_runs(
            [found.experiment_id], f"tags.`{tag}` LIKE '%'", max_results=limit, order_by=["attributes.start_time DESC"]
        )
        return {run.data.tags[tag]: run.info.run_id for run in reversed(runs)}

    def tag_run(self, run_id: str, tag: str, value: str) -> None:
        self.client.set_tag(run_id, tag, value)

    def run_key(self, run_id: str) -> str:
        """The key of a run ("" when it has none or does not exist)."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.get_run(run_id).data.tags.get(RUN_KEY, ""))
        except MlflowException:
            return ""
