"""Process settings: from the environment (prefix VITRINE_), a `.env` file, or the file that a demo wrote below VITRINE_HOME, else a
default that works on one laptop."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from serving.contract.addresses import MASK, hide_secrets, secret_texts, without_secrets
from tasks.errors import SettingsError

PREFIX = "VITRINE_"
PROJECT = Path(__file__).resolve().parent.parent
HOME_FILE = "settings.env"
"""Below VITRINE_HOME: what the services of this home were started with, so that every command beside them finds them."""


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
    catalog_csv: str = ""
    """How the CSV files of a catalogue folder are written, where that cannot be seen: any of encoding=cp1252,
    delimiter=comma|semicolon|tab|pipe, decimal=point|comma, separated by spaces."""
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
    graph_open_s: float = 300.0
    """Most seconds that a child process may take to open an exported graph and run it once; one that takes longer is refused."""
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
    min_held_out: int = 20
    """Fewest held-out photos (split val, or test where there is no val): recall is measured on them."""
    most_quarantined: float = 0.02
    """Largest share of products that may be without a usable picture."""
    max_unreadable: float = 0.2
    """Largest share of unreadable pictures among those that an encoder is trained or judged on."""
    max_untrainable: float = 0.01
    """Largest share of labelled products without one readable picture; a smaller share is left out of training."""
    max_price: float = 1e7
    """Greatest price of a product, in its own currency."""
    max_category_depth: int = 12
    """Most steps in a product's category."""
    max_title_length: int = 2000
    """Most characters of a title."""
    max_uri_length: int = 4000
    """Most characters of a picture's uri."""
    max_days_ahead: float = 1.0
    """How many days in the future the newest change may lie."""
    most_dropped: float = 0.2
    """A catalogue that lost more than this share of its products since the last version is refused."""
    most_drift: float = 0.5
    """Vectors whose covariance moved by more than this share since the last version are refused."""
    max_mean_shift: float = 0.1
    """Vectors whose mean moved by more than this since the last version are refused."""
    max_duplicates: float = 0.05
    """Largest share of different pictures with one and the same vector."""
    min_student_recall: float = 0.95
    """Least share of the teacher's Recall@10 that the student keeps."""
    min_int8_recall: float = 0.99
    """Least share of fp32's Recall@10 that int8 keeps."""
    min_student_speedup: float = 2.0
    """How many times as fast as the teacher the query encoder is at least, one picture at a time."""
    min_student_compression: float = 4.0
    """How many times fewer parameters the student has than the teacher at least."""
    max_recall_loss: float = 0.02
    """By how much Recall@10 may lie below the champion's (encoders) or the live version's (indexes) on the same photos."""
    max_slice_loss: float = 0.10
    """The same in any one category, unless chance explains it."""
    max_churn: float = 0.5
    """Largest share of the live version's top 20 that may be other products in a new version, while the encoder is the same."""
    max_age_h: float = 48.0
    """Oldest the catalogue may be, in hours, that an index version was made from."""
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
    def load(cls, environ: Mapping[str, str] | None = None, dotenv: Path | None = None, home_file: bool = True) -> "Settings":
        """Settings from `environ` (default: the process's), then `.env`, then the home's file, then the defaults."""
        return cls(**{name: value for name, (value, _) in read_settings(environ, dotenv, home_file).items()})

    @property
    def store_uri(self) -> str:
        return self.store.rstrip("/") or str(self.home / "data")

    @property
    def catalog_uri(self) -> str:
        return self.catalog or f"sqlite:///{self.home / 'catalog' / 'catalog.db'}"


def read_settings(
    environ: Mapping[str, str] | None = None, dotenv: Path | None = None, home_file: bool = True
) -> dict[str, tuple[Any, str]]:
    """Each setting's value and source: "environment", ".env", the path of the home's file, or "default"."""
    environ = os.environ if environ is None else environ
    sources: list[tuple[str, Mapping[str, str]]] = [
        ("environment", environ), (".env", _read_dotenv(PROJECT / ".env" if dotenv is None else dotenv)),
    ]  # fmt: skip
    home, source = _setting("home", Settings.home, sources)
    result: dict[str, tuple[Any, str]] = {"home": (home, source)}
    if home_file:
        sources.append((str(home / HOME_FILE), _read_dotenv(home / HOME_FILE)))
    for spec in fields(Settings):
        if spec.name != "home":
            result[spec.name] = _setting(spec.name, spec.default, sources)
    return result


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
    return {variable(spec.name): _text(getattr(settings, spec.name)) for spec in fields(Settings)}


def write_home_file(settings: Settings, always: tuple[str, ...]) -> Path:
    """Stores settings below their home, mode 0600: those that differ from the defaults, and those named in `always`.

    Raises SettingsError for a value of more than one line.
    """
    chosen = [s for s in fields(Settings) if s.name in always or getattr(settings, s.name) != s.default]
    lines = ["# Written by make demo and make up, anew each time; settings of your own belong into the environment or .env."]
    for spec in chosen:
        text = _text(getattr(settings, spec.name))
        if len(text.splitlines()) > 1:
            raise SettingsError(f"{variable(spec.name)} has more than one line; give a value of one line")
        if spec.name != "home":
            lines.append(f"{variable(spec.name)}='{text}'")
    return write_private(settings.home / HOME_FILE, "\n".join(lines) + "\n")


def write_private(path: Path, text: str) -> Path:
    """Writes a file with mode 0600 atomically (mkstemp and rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def mask(name: str, value: Any) -> str:
    """A setting's value for display: secrets, and what addresses hold of them, are masked."""
    spec = next(f for f in fields(Settings) if f.name == name)
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    if spec.metadata.get("secret") and text:
        return MASK
    return without_secrets(text)


def secret_values(settings: Settings) -> set[str]:
    """The texts that must never be shown: the values of secret settings, and the passwords and tokens in addresses."""
    found: set[str] = set()
    for spec in fields(Settings):
        value = getattr(settings, spec.name)
        for text in value if isinstance(value, tuple) else (str(value),):
            found |= {*secret_texts(text), *([text] if spec.metadata.get("secret") else [])}
    return {text for text in found if len(text) > 2}


def public_text(text: str, settings: Settings) -> str:
    """A text such as an error, safe to be shown: secrets of the settings, and of addresses in the text, are masked."""
    for secret in sorted(secret_values(settings), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return hide_secrets(text)


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


def _text(value: Any) -> str:
    """A value as `_parse` reads it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: the settings in it cannot be read: {error}") from None
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): _unquoted(value.strip()) for key, value in pairs}


def _unquoted(text: str) -> str:
    """A value without the pair of quotes around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
