"""MLflow: runs, artifacts, and the two registered models with their aliases. The only module of the pipeline that talks to it."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError, FileRef, describe, verify
from serving.contract.manifest import EncoderRef, IndexManifest, read_manifest
from tasks.errors import InputMissing, VitrineError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENCODER_MODEL = "product-encoder"
INDEX_MODEL = "product-index"
ENCODER_PATH = "encoder"
INDEX_PATH = "index"
RUN_KEY = "vitrine.run_key"
ORIGIN_NAME = "airflow.run"
ORIGIN_URL = "airflow.url"
ABOUT = {
    ENCODER_MODEL: (
        "Encoder versions: each turns pictures (and words) into unit vectors of one space. `champion` is what the catalogue is "
        "embedded with; moving it to another version starts the DAG `rebuild_index`, which embeds every product again. "
        "`challenger` is the version that was judged last."
    ),
    INDEX_MODEL: (
        "Index versions: each is a release, a manifest of verified segments together with the encoder version it needs. `live` is "
        "what shoppers get and names the same version as `blue` or `green`, the two slots of every replica; `candidate` passed its "
        "gates and waits for `promote_index`; `previous` is where a rollback goes. Move these with `vitrine release` or the board "
        "in Airflow, not here."
    ),
}
METRIC_BATCH = 500
METRIC_EVERY_S = 10.0
"""Metrics are sent when so many wait, or the oldest has waited so long: a training's curve is live, and cheap."""
SYSTEM_EVERY_S = 10.0
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Version:
    """One registered model version."""

    model: str
    version: str
    run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]
    description: str
    created_ms: int


@dataclass(frozen=True)
class Origin:
    """Where a run or a version was made, for whoever looks at it in MLflow: the name of the place and its address."""

    name: str
    url: str

    @property
    def markdown(self) -> str:
        return f"[{self.name}]({self.url})"


@dataclass(frozen=True)
class RunOf:
    """A run that exists: the key it was made under, and when (epoch seconds) it ended, or began where it has not."""

    run_id: str
    key: str
    at_s: float


class Run:
    """An open MLflow run. Metrics are sent in batches; `flush` sends what is waiting."""

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

    def params(self, values: dict[str, Any]) -> None:
        """Logs parameters; one that is already logged with another value is an error of MLflow's."""
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


class Registry:
    """The tracking server at `uri`; `cache` is where fetched encoder versions and index manifests are kept, by version.

    `page` is where a browser reaches the same server (default: `uri`). `origin`, the DAG run that works here, is written into
    every run and version that is made.
    """

    def __init__(self, uri: str, cache: Path, page: str = "", origin: Origin | None = None) -> None:
        # MLflow draws a bar for every file it fetches, unless it is told not to before it is imported.
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient

        self.uri, self.cache, self.page, self.origin = uri, cache, (page or uri).rstrip("/"), origin
        self.verified: dict[Path, tuple[int, int, int] | None] = {}
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    @contextmanager
    def run(
        self, experiment: str, key: str, name: str, tags: dict[str, str] | None = None, system_metrics: bool = False
    ) -> Iterator[Run]:
        """The run with this key in the experiment: the one a killed attempt left behind, or a new one.

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
            return found.experiment_id
        try:
            return self.client.create_experiment(name)
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

    def register(self, model: str, run_id: str, path: str, tags: dict[str, str], description: str) -> Version:
        """The version of `model` made from this run's artifacts: registered once, however often it is asked for."""
        self._create_model(model)
        for version in self.versions(model):
            if version.run_id == run_id:
                return version
        source = f"{self.client.get_run(run_id).info.artifact_uri}/{path}"
        links = [*([self.origin] if self.origin else []), Origin("MLflow run", self.run_url(run_id))]
        text = f"{description}\n\nMade by {' · '.join(link.markdown for link in links)}"
        made = self.client.create_model_version(model, source, run_id, tags=self._origin_tags() | tags, description=text)
        return self.version(model, str(made.version))

    def _create_model(self, model: str) -> None:
        """Creates a registered model without versions, unless it exists."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(model, {"made_by": "vitrine"}, ABOUT[model])
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _origin_tags(self) -> dict[str, str]:
        return {ORIGIN_NAME: self.origin.name, ORIGIN_URL: self.origin.url} if self.origin else {}

    def run_url(self, run_id: str) -> str:
        """Where a person sees a run."""
        return f"{self.page}/#/runs/{run_id}"

    def artifact_url(self, run_id: str, path: str) -> str:
        """Where a person sees an artifact of a run."""
        return f"{self.page}/#/runs/{run_id}/artifactPath/{path}"

    def version_url(self, model: str, version: str) -> str:
        """Where a person sees a model version."""
        return f"{self.page}/#/models/{model}/versions/{version}"

    def versions(self, model: str, limit: int = 0) -> list[Version]:
        """All versions (or the newest `limit`), newest first; [] when the model does not exist. Two calls per 1000 versions."""
        held: dict[str, list[str]] = {}
        for alias, version in self.aliases(model).items():
            held.setdefault(version, []).append(alias)
        made: list[Version] = []
        page: str | None = ""
        while page is not None and (not limit or len(made) < limit):
            found = self.client.search_model_versions(
                f"name = '{model}'",
                max_results=min(limit or 1000, 1000),
                order_by=["version_number DESC"],
                page_token=page or None,
            )
            made += [_version(model, v, tuple(sorted(held.get(str(v.version), [])))) for v in found]
            page = found.token or None
        return made[:limit] if limit else made

    def aliases(self, model: str) -> dict[str, str]:
        """Every alias of a model and the version it names; {} when the model does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_registered_model(model)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: str(version) for alias, version in found.aliases.items()}

    def version(self, model: str, version: str) -> Version:
        """One version. Raises VitrineError when there is none of that number."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_model_version(model, version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise VitrineError(f"{model} has no version {version!r}; see: vitrine release list") from None
            raise
        return _version(model, found, tuple(sorted(found.aliases)))

    def named(self, model: str, name: str) -> Version:
        """The version of this number or alias. Raises VitrineError when there is none."""
        found = None if name.isdigit() else self.alias(model, name)
        return found or self.version(model, name)

    def alias(self, model: str, alias: str) -> Version | None:
        """The version an alias names, or None."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_model_version_by_alias(model, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return self.version(model, str(found.version))

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.client.set_registered_model_alias(model, alias, version)

    def tag_version(self, model: str, version: str, tag: str, value: str) -> None:
        self.client.set_model_version_tag(model, version, tag, value)

    def model_tags(self, model: str) -> dict[str, str]:
        """The tags of a registered model; {} when it does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            return dict(self.client.get_registered_model(model).tags)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise

    def set_model_tag(self, model: str, tag: str, value: str) -> None:
        """Sets a tag of a registered model, which is created if it does not exist: a lease is taken before the first version too."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_registered_model_tag(model, tag, value)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._create_model(model)
            self.client.set_registered_model_tag(model, tag, value)

    def delete_model_tag(self, model: str, tag: str) -> None:
        """Removes a tag of a registered model; none is fine as well."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_registered_model_tag(model, tag)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def fetch(self, run_id: str, path: str, into: Path) -> Path:
        """An artifact (file or folder) of a run, downloaded below `into`. Raises ContractError when there is none (any more)."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        into.mkdir(parents=True, exist_ok=True)
        try:
            return Path(download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(into), tracking_uri=self.uri))
        except MlflowException as error:
            # MLflow says "does not exist" of a store that is away as well: that passes, and is no ContractError.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or self._is_there(run_id, path):
                raise
            whose = ", ".join(f"{v.name} version {v.version}" for v in self.client.search_model_versions(f"run_id = '{run_id}'"))
            raise ContractError(
                f"{path} of run {run_id}{f' ({whose})' if whose else ''} is not in MLflow's store; take it from a copy, or make a "
                "new version"
            ) from None

    def _is_there(self, run_id: str, path: str) -> bool:
        """Whether the store lists an artifact. Raises what MLflow raises where the store cannot be asked."""
        from mlflow.exceptions import MlflowException

        try:
            parent = str(PurePosixPath(path).parent)
            return any(info.path == path for info in self.client.list_artifacts(run_id, parent if parent != "." else None))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run
                return False
            raise

    def file(self, ref: FileRef) -> Path:
        """A file of an index version, fetched once (by its sha256) and verified: once by this object, while nobody writes to it.

        Raises ContractError when the registry's own is damaged or gone.
        """
        path = self.cache / "files" / ref.sha256
        if path not in self.verified or self.verified[path] != _written(path):
            self._kept(path, ref.run_id, ref.path, lambda found: verify(found, ref))
            self.verified[path] = _written(path)
        return path

    def delete_version(self, model: str, version: str) -> None:
        """Takes a version out of the registry; its run, with its metrics, stays. One that is gone already is no error."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_model_version(model, version)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise

    def runs(self, experiment: str, without_tag: str) -> list[RunOf]:
        """Every run of an experiment that does not carry a tag; [] when there is no such experiment."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        made: list[RunOf] = []
        page: str | None = ""
        while page is not None:
            answer = self.client.search_runs([found.experiment_id], max_results=1000, page_token=page or None)
            made += [
                RunOf(r.info.run_id, r.data.tags.get(RUN_KEY, ""), (r.info.end_time or r.info.start_time) / 1e3)
                for r in answer
                if without_tag not in r.data.tags
            ]
            page = answer.token or None
        return made

    def latest_metrics(self, experiment: str, having: str, names: Sequence[str]) -> dict[str, float]:
        """These metrics of the newest run of an experiment that has the metric `having`; {} when there is none."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return {}
        runs = self.client.search_runs(
            [found.experiment_id], f"metrics.`{having}` > 0", max_results=1, order_by=["attributes.start_time DESC"]
        )
        return {name: runs[0].data.metrics[name] for name in names if name in runs[0].data.metrics} if runs else {}

    def tag_run(self, run_id: str, tag: str, value: str) -> None:
        self.client.set_tag(run_id, tag, value)

    def artifacts(self, run_id: str, path: str) -> list[tuple[str, int]]:
        """Every file of a run below `path`, with its bytes; [] when there is none."""
        found: list[tuple[str, int]] = []
        for info in self.client.list_artifacts(run_id, path):
            found += self.artifacts(run_id, info.path) if info.is_dir else [(info.path, int(info.file_size or 0))]
        return found

    def delete_artifact(self, run_id: str, path: str) -> None:
        """Removes one file of a run."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self.client.get_run(run_id).info.artifact_uri
        get_artifact_repository(uri, tracking_uri=self.uri, registry_uri=self.uri).delete_artifacts(path)

    def run_key(self, run_id: str) -> str:
        """The key under which a run was made ("" when it has none or is gone)."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.get_run(run_id).data.tags.get(RUN_KEY, ""))
        except MlflowException:
            return ""

    def _kept(self, path: Path, run_id: str, artifact: str, opened: Callable[[Path], Opened]) -> Opened:
        """What `opened` makes of the copy of an artifact at `path`, or of one fetched now, where ContractError says it is not whole.

        A copy is kept only once `opened` took it, so that a damaged download does not stay; it appears whole or not at all, also
        when two processes fetch it at once.
        """
        try:
            return opened(path)
        except ContractError:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=path.parent) as folder:
            found = self.fetch(run_id, artifact, Path(folder))
            result = opened(found)
            try:
                found.replace(path)
            except OSError:
                if not path.exists():
                    raise
        return result

    def encoder_folder(self, version: str) -> Path:
        """The files of an encoder version, fetched once and verified every time."""
        found = self.version(ENCODER_MODEL, version)
        folder = self.cache / "encoders" / found.run_id
        self._kept(folder, found.run_id, ENCODER_PATH, _verified_encoder)
        return folder

    def encoder_ref(self, version: str) -> EncoderRef:
        """The reference an index version carries for this encoder version."""
        found = self.version(ENCODER_MODEL, version)
        folder = self.encoder_folder(version)
        manifest = EncoderFolder(folder).manifest
        return EncoderRef(
            name=manifest.name,
            version=version,
            run_id=found.run_id,
            manifest=describe(folder / "encoder.json", f"{ENCODER_PATH}/encoder.json", found.run_id),
            document=manifest.document,
            document_fingerprint=manifest.variant(manifest.document).fingerprint,
            query=manifest.query,
            query_fingerprint=manifest.variant(manifest.query).fingerprint,
            dim=manifest.dim,
        )

    def index_manifest(self, version: str) -> IndexManifest:
        """The manifest of an index version."""
        return self.manifest_of(self.version(INDEX_MODEL, version))

    def manifest_of(self, found: Version) -> IndexManifest:
        """The manifest of an index version that was read already; fetched once, as a version never changes."""
        path = self.cache / "manifests" / found.run_id / "manifest.json"
        return self._kept(path, found.run_id, f"{INDEX_PATH}/manifest.json", lambda kept: read_manifest(kept, IndexManifest))

    def require_alias(self, model: str, alias: str) -> Version:
        """The version an alias names. Raises InputMissing saying which DAG makes one."""
        found = self.alias(model, alias)
        if found is None:
            maker = "train_encoder" if model == ENCODER_MODEL else "rebuild_index"
            raise InputMissing(f"{model} has no version called {alias!r}; run the DAG {maker} first")
        return found


def unreachable(error: BaseException) -> bool:
    """Whether an error of MLflow's says that its server could not be asked."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    return isinstance(error, MlflowException) and isinstance(error.__cause__ or error.__context__, RequestException)


def _written(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written to or replaced; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _verified_encoder(folder: Path) -> None:
    for variants in EncoderFolder(folder).manifest.towers.values():
        for variant in variants.values():
            verify(folder / variant.file.path, variant.file)


def _version(model: str, found: Any, aliases: tuple[str, ...]) -> Version:
    """MLflow's model version as ours; a search's answer does not carry the aliases."""
    return Version(
        model, str(found.version), str(found.run_id), dict(found.tags), aliases, found.description or "",
        int(found.creation_timestamp or 0),
    )  # fmt: skip
