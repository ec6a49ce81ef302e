"""What the steps of all pipelines share: settings, the registry, a run's work folder, and the snapshot."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from serving.contract.runtimes import Runtime
from tasks import storage
from tasks.catalog.snapshot import Snapshot, take_snapshot
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
    """The DAG run that this process works for, as Airflow tells its tasks; None outside of Airflow."""
    dag, run = environ.get("AIRFLOW_CTX_DAG_ID", ""), environ.get("AIRFLOW_CTX_DAG_RUN_ID", "")
    return Origin(f"{dag}, {run}", dag_run_url(chosen, dag, run)) if dag and run else None


def dag_run_url(chosen: Settings, dag: str, run: str) -> str:
    """Where a person sees a DAG run."""
    return f"{(chosen.airflow_page or chosen.airflow_url).rstrip('/')}/dags/{dag}/runs/{quote(run, safe='')}"


def query_runtime() -> Runtime:
    """What runs the queries' encoder: the same setting tells the replicas."""
    from tasks.encoder.export.runtimes import runtime

    return runtime(settings().encoder_runtime)


def work_folder(run_key: str) -> Path:
    """Where a run keeps what only its own steps need; survives retries."""
    folder = settings().home / "work" / run_key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def snapshot(run_key: str) -> dict:
    """The catalogue as it is now, as an immutable snapshot named after the run."""
    chosen = settings()
    return asdict(take_snapshot(chosen.catalog_uri, storage.join(chosen.store_uri, "snapshots"), run_key))


def embed_config(chosen: Settings, shards: int) -> "EmbedConfig":
    """How pictures are embedded, by the settings: the same for every path that embeds some."""
    from tasks.embed.job import EmbedConfig

    return EmbedConfig(
        spark_master=chosen.spark_master, shards=shards, runtime=chosen.embed_runtime, gpus=chosen.spark_gpus,
        hosts=chosen.image_hosts, private_hosts=chosen.image_hosts_private, fetch_s=chosen.image_fetch_s,
    )  # fmt: skip


def as_snapshot(record: dict) -> Snapshot:
    return Snapshot(**record)
