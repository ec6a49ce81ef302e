"""Shared by all pipelines: settings, the registry, scratch folders, and the snapshot step."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from serving.contract.addresses import without_userinfo
from serving.contract.runtimes import Runtime
from tasks import storage
from tasks.catalog import snapshot
from tasks.catalog.snapshot import Snapshot
from tasks.catalog.sources.settings import source_options
from tasks.registry import INDEX_MODEL, Origin, Registry
from tasks.registry.binding import trust_of
from tasks.release.promotion.serving_replicas import Replica, urls_of
from tasks.settings import Settings
from tasks.worker_disk import CACHE, WORK, clean_now_and_then

if TYPE_CHECKING:
    from tasks.embed.job import EmbedConfig


def settings() -> Settings:
    return Settings.load()


def registry(chosen: Settings | None = None) -> Registry:
    chosen = chosen or settings()
    made_by = origin(chosen, os.environ)
    return Registry(chosen.mlflow_uri, chosen.home / CACHE, chosen.mlflow_page, made_by, trust_of(chosen), chosen.endpoint)


def origin(chosen: Settings, environ: Mapping[str, str]) -> Origin | None:
    """The DAG run of this process, from the variables that Airflow sets for tasks; None outside of Airflow."""
    dag, run = environ.get("AIRFLOW_CTX_DAG_ID", ""), environ.get("AIRFLOW_CTX_DAG_RUN_ID", "")
    return Origin(f"{dag}, {run}", dag_run_url(chosen, dag, run)) if dag and run else None


def dag_run_url(chosen: Settings, dag: str, run: str) -> str:
    """URL of a DAG run in Airflow's UI."""
    return f"{without_userinfo(chosen.airflow_page or chosen.airflow_url).rstrip('/')}/dags/{dag}/runs/{quote(run, safe='')}"


def query_runtime() -> Runtime:
    """The runtime of the query encoder; the same setting configures the replicas."""
    from tasks.encoder.export.runtimes import runtime

    return runtime(settings().encoder_runtime)


def replicas_of(chosen: Settings) -> list[Replica]:
    """The serving replicas that the settings name, found anew at each call: pods come and go."""
    return [Replica(url, chosen.admin_token) for name in chosen.serving_urls for url in urls_of(name)]


def version_links(models: Registry, version: str) -> dict[str, str]:
    """Addresses of an index version for the buttons on a task's page."""
    found = models.version(INDEX_MODEL, version)
    return {
        "Model version": models.version_url(INDEX_MODEL, version), "MLflow run": models.run_url(found.run_id),
        "Data docs": models.artifact_url(found.run_id, "data_docs"),
    }  # fmt: skip


@contextmanager
def scratch(run_key: str, step: str) -> Iterator[Path]:
    """A folder on this worker's own disk for one step of a run, deleted when the step succeeds.

    What another step needs goes to the store. What a failed or killed attempt left is there for the next one on this worker; a week
    later any step on this worker deletes it (tasks/worker_disk.py).
    """
    chosen = settings()
    clean_now_and_then(chosen.home, chosen.worker_gb)
    folder = chosen.home / WORK / f"{run_key}.{step}"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def take_snapshot(run_key: str) -> Snapshot:
    """Takes a snapshot of the catalogue, named after the run, with the queries that recall is measured on (tasks/queries)."""
    from tasks.embed.images import fetcher
    from tasks.queries.stand_in import make_stand_ins

    chosen = settings()
    snapshots = storage.join(chosen.store_uri, "snapshots")
    taken = snapshot.take_snapshot(chosen.catalog_uri, snapshots, run_key, source_options(chosen))
    web = fetcher(chosen.image_hosts, chosen.image_hosts_private, chosen.image_fetch_s)
    make_stand_ins(taken, chosen.store_uri, chosen.enough_photos, web)
    return taken


def embed_config(chosen: Settings, shards: int) -> "EmbedConfig":
    """The embedding configuration from the settings, the same for all paths."""
    from tasks.embed.job import EmbedConfig

    return EmbedConfig(
        spark_master=chosen.spark_master, shards=shards, runtime=chosen.embed_runtime, gpus=chosen.spark_gpus,
        hosts=chosen.image_hosts, private_hosts=chosen.image_hosts_private, fetch_s=chosen.image_fetch_s,
        spark=(("spark.driver.host", chosen.spark_driver_host),) if chosen.spark_driver_host else (), text_only=chosen.text_only,
    )  # fmt: skip
