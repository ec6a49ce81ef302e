"""Process settings: from the environment (prefix VITRINE_), a `.env` file, or the file that a demo wrote below VITRINE_HOME, else a
default that works on one laptop."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from serving.index.collection import MEASURE_S, Endpoint
from serving.settings import KIND_NAMES, check_header_variables, header_value, setting
from tasks.dotenv import read_dotenv
from tasks.errors import SettingsError

PREFIX = "VITRINE_"
PROJECT = Path(__file__).resolve().parent.parent
HOME_FILE = "settings.env"
"""Below VITRINE_HOME: what the services of this home were started with, so that every command beside them finds them."""


@dataclass(frozen=True)
class Settings:
    """Every setting of the pipeline and the command line, typed. `vitrine settings` prints them with where each came from."""

    home: Path = setting(
        PROJECT / ".vitrine", "folder of everything a run makes on this machine; each Airflow worker has its own", "/srv/vitrine",
        area="Places and services",
    )  # fmt: skip
    store: str = setting(
        "", "root of snapshots and embeddings, local or s3://bucket/prefix; empty: `data` below home", "s3://shop-vitrine/prod"
    )
    store_credentials: str = setting(
        "", "airflow://conn_id of a connection of type aws, for tasks in Airflow; empty: the AWS_ variables, or the machine's role",
        "airflow://shop_store",
    )  # fmt: skip
    mlflow_uri: str = setting(
        "http://127.0.0.1:5000", "MLflow server of encoder and index versions", "https://mlflow.shop.example"
    )
    mlflow_page: str = setting(
        "", "where a person's browser reaches MLflow, for links; empty: VITRINE_MLFLOW_URI", "https://mlflow.shop.example"
    )
    airflow_url: str = setting("http://127.0.0.1:8080", "Airflow's API server", "https://airflow.shop.example")
    airflow_page: str = setting(
        "", "where a person's browser reaches Airflow, for links; empty: VITRINE_AIRFLOW_URL", "https://airflow.shop.example"
    )
    airflow_user: str = setting("admin", "Airflow user that `make demo` starts runs as", "operator")
    airflow_password: str = setting("", "password of that user; `make demo` draws one", "a long random text", secret=True)
    serving_urls: tuple[str, ...] = setting(
        ("http://127.0.0.1:8000",), "replicas that a promotion waits for (of a sharded index: its gateways); an http:// name with "
        "several addresses stands for all of them; empty: none",
        "http://replica-0:8000,http://replica-1:8000",
    )  # fmt: skip
    queues: tuple[str, ...] = setting(
        (), "Airflow's queue by kind of task (small, large, spark, gpu); not named: its default", "gpu=gpus,large=big"
    )
    pools: tuple[str, ...] = setting(
        (), "the same of pools, which must exist in Airflow; not named: default_pool", "spark=sparks"
    )
    pod_templates: tuple[str, ...] = setting(
        (), "the same of pod templates (paths on the scheduler's machine), for KubernetesExecutor", "gpu=/opt/pods/gpu.yaml"
    )
    admin_token: str = setting("", "bearer token that those replicas ask for on admin routes", "a long random text", header=True)
    signing_key: str = setting(
        "", "PEM file of the Ed25519 private key that manifests are signed with, and those that are read must be signed with",
        "/run/secrets/signing.pem",
    )  # fmt: skip
    require_bound: bool = setting(
        False, "whether versions are refused that no registry tag binds to their manifest (`vitrine release bind`)", 1
    )
    webhook_secret: str = setting(
        "", "HMAC secret of MLflow's message about a moved champion; empty: Airflow finds the move within 15 minutes",
        "a long random text", secret=True,
    )  # fmt: skip
    redis_url: str = setting("", "redis:// of the feature store; empty: none", "redis://features:6379/0", secret=True)
    alert_url: str = setting(
        "", "where a failed task or check is told, JSON by POST (a chat's incoming webhook); empty: the log only",
        "https://chat.shop.example/hook/42", secret=True,
    )  # fmt: skip
    catalog: str = setting(
        "", "sqlite:///file, postgresql://…?image_root=…, a table as parquet:…, delta:… or iceberg:…, or a folder with products.csv or "
        ".parquet; empty: the sample below home",
        "postgresql://reader@db/shop?image_root=s3://pictures", area="Catalogue and pictures",
    )  # fmt: skip
    image_hosts: tuple[str, ...] = setting(
        (), "hosts that https:// addresses of product pictures may name; empty: none is fetched", "cdn.shop.example"
    )
    image_hosts_private: bool = setting(False, "these hosts may lie in a private network, then also by http://", "yes")
    image_fetch_s: float = setting(10.0, "most seconds for one such picture; a slower one is quarantined", 30)
    catalog_csv: str = setting(
        "", "how CSV files of a catalogue folder are written, where that cannot be seen: any of encoding=<name>, "
        "delimiter=comma|semicolon|tab|pipe, decimal=point|comma, separated by spaces", "encoding=cp1252 decimal=comma",
    )  # fmt: skip
    catalog_columns: str = setting(
        "", "what a catalogue's columns are called and computed from, where not as in catalogue.md: TOML, or a path that ends in "
        ".toml", '{product_id = "sku", title = "name_en", price = "price_cents / 100"}',
    )  # fmt: skip
    catalog_query: str = setting(
        "", "one SELECT that stands for the table products of a SQLite or PostgreSQL catalogue; read only, ordered by us",
        "SELECT * FROM items WHERE published",
    )  # fmt: skip
    changes: str = setting(
        "outbox:", "queue of changes: outbox: (a table beside the catalogue), sqs://queue or kafka://host:port/topic; or compare: (the "
        "catalogue is read and compared each time) or updated_at: (a database's rows by their time)",
        "sqs://catalogue-changes", area="Changes",
    )  # fmt: skip
    refresh_changes: int = setting(20_000, "most changes that one refresh takes; the others wait for the next", 50_000)
    refresh_minutes: float = setting(30.0, "most minutes that one refresh may embed for, at the pace of the last", 15)
    stream_seconds: float = setting(30.0, "least seconds between two rounds of `vitrine stream`", 60)
    encoder_preset: str = setting(
        "demo", "what train_encoder trains (tasks/encoder/presets.py)", "vit_b16", area="Encoder and embedding"
    )
    pixel_cache_gb: float = setting(
        8.0,
        "training pictures are decoded once and kept below home up to this many GB; beyond, they are decoded as they are used",
        64,
    )
    decoders: int = setting(2, "processes that decode pictures as they are used", 16)
    graph_open_s: float = setting(
        300.0, "most seconds for an exported graph to open and run once in a child process, else refused", 60
    )
    encoder_runtime: str = setting(
        "onnxruntime",
        "runtime of the query encoder where gates measure it; set the replicas' alike (docs/develop/encoders.md)",
        "openvino",
    )
    embed_runtime: str = setting("onnxruntime", "runtime of the embedding job; torch takes the GPU where there is one", "torch")
    worker_gb: float = setting(
        50.0, "GB of fetched versions and caches of trainings that a worker keeps below home; what was used longest ago goes first, but "
        "nothing of the last day; 0: any", 200,
    )  # fmt: skip
    spark_master: str = setting("local[2]", "Spark master of the embedding job", "spark://spark:7077")
    spark_driver_host: str = setting(
        "", "address at which Spark's executors reach this worker; empty: the one it reaches the master from", "worker-0.lan"
    )
    spark_gpus: float = setting(0.0, "GPUs an embedding task asks of the cluster: 1 its own, 0.5 one for two tasks, 0 none", 1)
    shards: int = setting(2, "number of shards of a new index; a product is in shard `key mod N`", 8, area="Index")
    recall_target: float = setting(
        0.95,
        "least recall@10 against exact search, on held-out photos: tuned for, then gate `exact_recall`; live recall too",
        0.98,
    )
    index_family: str = setting(
        "", "index family by name (docs/develop/index.md); empty: chosen by rows, target and budget", "hnsw_sq8"
    )
    index_ram_mb: float = setting(0.0, "most MiB for the index files of all shards; 0: any", 16_000)
    index_p99_ms: float = setting(0.0, "most milliseconds for the first phase, 99 of 100 queries; 0: any", 10)
    index_clients: int = setting(1, "concurrent queries that the index is chosen and tuned for", 8)
    index_build_s: float = setting(0.0, "most seconds to build one shard; 0: any", 3600)
    engine: str = setting(
        "faiss", "what holds the base vectors of a new index: faiss, or another engine (docs/operate/engines.md)", "pgvector"
    )
    engine_address: str = setting("", "address of that engine, for pipeline and replicas", "postgresql://vitrine@db/vectors")
    engine_token: str = setting("", "token that it asks for: user:password, or an API key", "root:secret", header=True)
    ranker: str = setting(
        "", "JSON file, local or s3://, of the ranker's weights and business rules; empty: the defaults", "s3://shop/ranker.json"
    )
    enough_photos: int = setting(
        200, "held-out photos to measure recall on alone; with fewer, views of product pictures stand in; 0: never", 1000,
        area="Limits of a catalogue and its vectors",
    )  # fmt: skip
    min_held_out: int = setting(
        20, "fewest queries to measure recall on (held-out photos, views), or the catalogue is refused", 200
    )
    max_unreadable: float = setting(0.2, "largest share of unreadable pictures in training data, or training is refused", 0.05)
    max_untrainable: float = setting(
        0.01, "largest share of labelled products without a readable picture, or training is refused", 0.05
    )
    max_price: float = setting(1e7, "greatest price, in its own currency; a row beyond it is set aside", 1e9)
    max_category_depth: int = setting(12, "most steps in a category; a row beyond it is set aside", 20)
    max_title_length: int = setting(2000, "most characters of a title; a row beyond it is set aside", 4000)
    max_uri_length: int = setting(4000, "most characters of a picture's address; a row beyond it is set aside", 8000)
    max_pictures: int = setting(16, "most pictures of a product; those beyond, by position, are left out and counted", 8)
    text_only: bool = setting(False, "a product without any picture is found by words, by its title; no: set aside", "yes")
    max_days_ahead: float = setting(
        1.0, "days a change may lie in the future; one row beyond it, and the catalogue is refused", 2
    )
    catalog_max_age_days: float = setting(0.0, "days since the newest change after which a catalogue is refused; 0: any", 7)
    most_dropped: float = setting(0.2, "share of products lost since the last version, above which the snapshot is refused", 0.5)
    most_drift: float = setting(
        0.5, "relative change of the vectors' covariance since the last version, above which they are refused", 1
    )
    max_mean_shift: float = setting(0.1, "shift of the vectors' mean since the last version, above which they are refused", 0.2)
    max_duplicates: float = setting(0.05, "share of different pictures with one vector, above which vectors are refused", 0.2)
    min_student_recall: float = setting(
        0.95, "gate `student_recall`: share of the teacher's Recall@10 that the student keeps, at least", 0.9,
        area="Gates of an encoder",
    )  # fmt: skip
    min_int8_recall: float = setting(
        0.99, "share of fp32's MRR below which int8 is left out; gate `int8_recall`: of its Recall@10", 0.98
    )
    min_student_speedup: float = setting(2.0, "gate `student_speed`: times as fast as the teacher, at least, at batch 1", 4)
    min_student_compression: float = setting(4.0, "gate `student_size`: times fewer parameters than the teacher, at least", 8)
    max_recall_loss: float = setting(
        0.02, "gates `champion_recall` and `photo_recall`: Recall@10 lost against the champion or live, on the same photos", 0.01,
        area="Gates of an encoder and an index",
    )  # fmt: skip
    max_slice_loss: float = setting(0.10, "gates `champion_slices` and `photo_slices`: the same in any one category", 0.2)
    p99_ms: float = setting(
        200.0, "gate `p99_ms`: most milliseconds for a photo, bytes to answer, 99 of 100 under load; also in the "
        "bake and in watch_quality", 100, area="Gates of an index version",
    )  # fmt: skip
    replica_mb: float = setting(16384.0, "memory of a replica, MiB; gate `memory_mb` gives a version half of it", 32_768)
    most_quarantined: float = setting(
        0.02, "gate `quarantined`: most products without a usable picture; most rows set aside", 0.05
    )
    max_lost: float = setting(0.1, "gate `lost`: largest share of the live version's products that may be missing", 0.3)
    max_churn: float = setting(0.5, "gate `churn`: largest share of live's top 20 replaced, while the encoder is the same", 0.8)
    max_age_h: float = setting(48.0, "gate `age_h`: most hours since the catalogue was read", 24)
    approval: bool = setting(
        False, "promote_index waits for a person in the Airflow UI; `vitrine release promote` and `vitrine stream` never ask", "yes",
        area="Promotion, retention, watching",
    )  # fmt: skip
    approve_hours: float = setting(8.0, "hours of embedding above which a person approves it in the Airflow UI; 0: never", 24)
    bake_s: float = setting(30.0, "seconds a version is watched after the flip, then kept or rolled back; 0: not at all", 600)
    keep_versions: int = setting(24, "newest index versions that collect_garbage keeps, besides those that an alias names", 72)
    most_age_h: float = setting(26.0, "hours since the newest servable change after which watch_quality fails; 0: never", 3)
    price_core_hour: float = setting(
        0.04, "price of a core an hour, for the cost figures of plan_reembedding and watch_quality", 0.05
    )
    price_gpu_hour: float = setting(0.60, "price of a GPU an hour, for the same", 2.5)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, dotenv: Path | None = None, home_file: bool = True) -> "Settings":
        """Settings from `environ` (default: the process's), then `.env`, then the home's file, then the defaults."""
        return cls(**{name: value for name, (value, _) in read_settings(environ, dotenv, home_file).items()})

    @property
    def store_uri(self) -> str:
        return self.store.rstrip("/") or str(self.home / "data")

    @property
    def endpoint(self) -> Endpoint:
        """Where the engine is; a call may take ten seconds and an exact comparison minutes, as no shopper waits for them."""
        return Endpoint(self.engine_address, self.engine_token, 10.0, MEASURE_S)

    @property
    def catalog_uri(self) -> str:
        return self.catalog or f"sqlite:///{self.home / 'catalog' / 'catalog.db'}"


def read_settings(
    environ: Mapping[str, str] | None = None, dotenv: Path | None = None, home_file: bool = True
) -> dict[str, tuple[Any, str]]:
    """Each setting's value and source: "environment", ".env", the path of the home's file, or "default". Raises SettingsError."""
    environ = os.environ if environ is None else environ
    in_file = read_dotenv(PROJECT / ".env" if dotenv is None else dotenv)
    sources: list[tuple[str, Mapping[str, str]]] = [("environment", environ), (".env", in_file)]
    result: dict[str, tuple[Any, str]] = {"home": _setting("home", Settings.home, sources)}
    if home_file:
        sources.append((str(result["home"][0] / HOME_FILE), read_dotenv(result["home"][0] / HOME_FILE)))
    result |= {spec.name: _setting(spec.name, spec.default, sources) for spec in fields(Settings) if spec.name != "home"}
    try:
        check_header_variables(environ)
        return result | {n: (header_value(variable(n), result[n][0]), result[n][1]) for n in ("admin_token", "engine_token")}
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _setting(name: str, default: Any, sources: list[tuple[str, Mapping[str, str]]]) -> tuple[Any, str]:
    """A setting's value and source; the first source that has it counts."""
    key = variable(name)
    for source, values in sources:
        if key in values:
            return _parse(key, values[key], default), source
    return default, "default"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def setting_sources(home: Path) -> str:
    """The places that settings are read from, as text for messages."""
    return f"the environment, {PROJECT / '.env'} and {home / HOME_FILE}"


def as_variables(settings: Settings) -> dict[str, str]:
    """Every setting as an environment variable, for subprocesses that must see the same settings."""
    return {variable(spec.name): as_text(getattr(settings, spec.name)) for spec in fields(Settings)}


def _parse(key: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if isinstance(default, Path):
            return Path(text).expanduser().resolve()
        return type(default)(text)
    except (KeyError, ValueError):
        raise SettingsError(f"{key}={text!r} is not {KIND_NAMES[type(default)]}") from None


def as_text(value: Any) -> str:
    """A value as `_parse` reads it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return ",".join(value) if isinstance(value, tuple) else str(value)
