"""Shared by all pipelines: settings, the registry, work folders, and the snapshot step."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from serving.contract.runtimes import Runtime
from tasks import storage
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.catalog.sources.settings import row_limits, source_options
from tasks.registry import Origin, Registry
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.embed.job import EmbedConfig


def settings() -> Settings:
    return Settings.load()


def registry(chosen: Settings | None = None) -> Registry:
    chosen = chosen or settings()
    return Registry(chosen.mlflow_uri, chosen.home / "cache", chosen.mlflow_page, origin(chosen, os.environ))


def origin(chosen: Settings, environ: Mapping[str, str]) -> Origin | None:
    """The DAG run of this process, from the variables that Airflow sets for tasks; None outside of Airflow."""
    dag, run = environ.get("AIRFLOW_CTX_DAG_ID", ""), environ.get("AIRFLOW_CTX_DAG_RUN_ID", "")
    return Origin(f"{dag}, {run}", dag_run_url(chosen, dag, run)) if dag and run else None


def dag_run_url(chosen: Settings, dag: str, run: str) -> str:
    """URL of a DAG run in Airflow's UI."""
    return f"{(chosen.airflow_page or chosen.airflow_url).rstrip('/')}/dags/{dag}/runs/{quote(run, safe='')}"


def query_runtime() -> Runtime:
    """The runtime of the query encoder; the same setting configures the replicas."""
    from tasks.encoder.export.runtimes import runtime

    return runtime(settings().encoder_runtime)


def work_folder(run_key: str) -> Path:
    """A run's folder on this machine for intermediate files; survives retries."""
    folder = settings().home / "work" / run_key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def snapshot(run_key: str) -> dict:
    """Takes a snapshot of the catalogue, named after the run."""
    chosen = settings()
    return asdict(
        take_snapshot(
            chosen.catalog_uri, storage.join(chosen.store_uri, "snapshots"), run_key, row_limits(chosen), source_options(chosen)
        )
    )


def embed_config(chosen: Settings, shards: int) -> "EmbedConfig":
    """The embedding configuration from the settings, the same for all paths."""
    from tasks.embed.job import EmbedConfig

    return EmbedConfig(
        spark_master=chosen.spark_master, shards=shards, runtime=chosen.embed_runtime, gpus=chosen.spark_gpus,
        hosts=chosen.image_hosts, private_hosts=chosen.image_hosts_private, fetch_s=chosen.image_fetch_s,
    )  # fmt: skip


def as_snapshot(record: dict) -> Snapshot:
    return Snapshot(**record)
