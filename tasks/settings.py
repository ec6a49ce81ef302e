"""Process settings: from the environment (prefix VITRINE_) or a `.env` file, else a default that works on one laptop."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tasks.errors import SettingsError

PREFIX = "VITRINE_"
PROJECT = Path(__file__).resolve().parent.parent


def _secret(default: str = "") -> Any:
    return field(default=default, metadata={"secret": True})


@dataclass(frozen=True)
class Settings:
    """Every setting, typed. `vitrine settings` prints them with where each came from."""

    home: Path = PROJECT / ".vitrine"
    """Everything a run makes lies below it."""
    store: str = ""
    """Root of snapshots and embeddings: a local folder or s3://bucket/prefix. Empty: <home>/data."""
    catalog: str = ""
    """sqlite:///file, postgresql://…, or a folder with products.csv|parquet. Empty: the sample at <home>/catalog/catalog.db."""
    changes: str = "outbox:"
    """Where changes come from: outbox: (a table in the catalogue's database), sqs://queue or kafka://host:port/topic."""
    refresh_changes: int = 20_000
    """Most changes that one refresh takes; the others wait for the next."""
    refresh_minutes: float = 30.0
    """Most time that one refresh may need for embedding, at the pace of the last."""
    stream_seconds: float = 30.0
    """Least time between two rounds of `vitrine stream`: with the round itself, a change is live within a minute."""
    mlflow_uri: str = "http://127.0.0.1:5000"
    mlflow_page: str = ""
    """Where a person's browser reaches MLflow, for links. Empty: the same as mlflow_uri."""
    airflow_url: str = "http://127.0.0.1:8080"
    airflow_page: str = ""
    """Where a person's browser reaches Airflow, for links. Empty: the same as airflow_url."""
    airflow_user: str = "admin"
    airflow_password: str = _secret()
    serving_urls: tuple[str, ...] = ("http://127.0.0.1:8000",)
    """Replicas that a promotion waits for, separated by commas. Empty: none."""
    admin_token: str = _secret()
    """What serving's admin routes ask for. Empty: those routes are closed."""
    webhook_secret: str = _secret()
    """Signs MLflow's messages about a moved champion. Empty: Airflow accepts none and finds the move by polling."""
    encoder_preset: str = "demo"
    pixel_cache_gb: float = 8.0
    """Training pictures are decoded once and kept below home while they fit in so much; more are decoded as they are used."""
    decoders: int = 2
    """Processes that decode pictures as they are used."""
    shards: int = 2
    recall_target: float = 0.95
    """Least recall@10 of the index against exact search, on photos."""
    index_family: str = ""
    """An index family by name (tasks/index/families.py). Empty: the one that fits the size, the recall target and the budget below."""
    index_ram_mb: float = 0.0
    """Most memory for the index files of all shards, MiB. 0: any."""
    index_p99_ms: float = 0.0
    """Most for the first phase of one query, 99 of 100, with index_clients at once. 0: any."""
    index_clients: int = 1
    """How many queries at once the index is chosen and tuned for."""
    index_build_s: float = 0.0
    """Most seconds that building one shard may take. 0: any."""
    ranker: str = ""
    """A JSON file, local or s3://, of the weights and business rules of the next versions (docs/serving.md). Empty: the defaults."""
    encoder_runtime: str = "onnxruntime"
    """What runs the queries' encoder, here where it is judged and in every replica: see docs/encoders.md."""
    embed_runtime: str = "onnxruntime"
    """What runs the documents' encoder in the embedding job; torch takes the GPU where there is one."""
    spark_master: str = "local[2]"
    redis_url: str = _secret()
    image_hosts: tuple[str, ...] = ()
    """Hosts that https:// image URIs may name. Empty: no image is fetched over the network."""
    image_hosts_private: bool = False
    """Whether these hosts may lie in a private network; they may then also be named by http://."""
    image_fetch_s: float = 10.0
    """Most seconds a picture may take to come from such a host."""
    catalog_max_age_days: float = 0.0
    """A catalogue whose newest change is older is refused. 0: any age will do."""
    most_dropped: float = 0.2
    """A catalogue that lost more than this share of its products since the last version is refused."""
    most_drift: float = 0.5
    """Vectors whose covariance moved by more than this share since the last version are refused."""
    spark_gpus: float = 0.0
    """GPUs that an embedding task asks of the Spark cluster: 1 its own, 0.5 one for two tasks, 0 none."""
    approval: bool = False
    """Whether a promotion waits for a person in the Airflow UI."""
    bake_s: float = 30.0
    """How long a version is watched after the flip before it is kept; it is rolled back when it does not hold. 0: not at all."""
    p99_ms: float = 200.0
    """Most for one photo from bytes to the answer, 99 of 100: for the gates, under load, and for the bake."""
    replica_mb: float = 16384.0
    """Memory of a replica, which holds two versions at once, in MiB."""
    keep_versions: int = 24
    """Newest index versions that collect_garbage keeps; whatever an alias names is kept besides."""
    most_age_h: float = 26.0
    """Hours since the newest servable change from which watch_quality complains. 0: never."""
    price_core_hour: float = 0.04
    """What a core costs an hour, for the cost figures of watch_quality."""
    price_gpu_hour: float = 0.60
    alert_url: str = _secret()
    """Where a failed or late run is told, as a JSON message by POST (such as a chat's incoming webhook). Empty: the log only."""
    max_lost: float = 0.1
    """Largest share of the live version's products that a new version may lack."""

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, dotenv: Path | None = None) -> "Settings":
        """Settings from `environ` (default: the process's), then the `.env` file, then the defaults."""
        return cls(**{name: value for name, (value, _) in read_settings(environ, dotenv).items()})

    @property
    def store_uri(self) -> str:
        return self.store.rstrip("/") or str(self.home / "data")

    @property
    def catalog_uri(self) -> str:
        return self.catalog or f"sqlite:///{self.home / 'catalog' / 'catalog.db'}"


def read_settings(environ: Mapping[str, str] | None = None, dotenv: Path | None = None) -> dict[str, tuple[Any, str]]:
    """Each setting's value and its source: "environment", ".env" or "default"."""
    environ = os.environ if environ is None else environ
    from_file = _read_dotenv(PROJECT / ".env" if dotenv is None else dotenv)
    known = {f.name: f for f in fields(Settings)}
    result: dict[str, tuple[Any, str]] = {}
    for name, spec in known.items():
        key = PREFIX + name.upper()
        for source, values in (("environment", environ), (".env", from_file)):
            if key in values:
                result[name] = (_parse(key, values[key], spec.default), source)
                break
        else:
            result[name] = (spec.default, "default")
    return result


def masked(name: str, value: Any) -> str:
    """A setting's value as it may be shown: secrets and passwords inside URLs hidden."""
    spec = next(f for f in fields(Settings) if f.name == name)
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    if spec.metadata.get("secret") and text:
        return "********"
    return re.sub(r"(://[^:/@\s]*:)[^@/]+@", r"\1********@", text)


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
        raise SettingsError(f"{key}={text!r} is not a {type(default).__name__}") from None


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("'\"") for key, value in pairs}
