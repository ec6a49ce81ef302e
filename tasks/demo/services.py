"""Supervises the services of one machine: started once, found again by pid file, stopped with their children."""

import json
import os
import secrets
import sys
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

from serving.contract.child_environment import CLOUD, child_environment
from tasks.catalog.sample.catalog import NOTICE
from tasks.demo.supervisor import Service, address_of
from tasks.errors import SettingsError
from tasks.private_file import write_private
from tasks.settings import PROJECT, Settings, as_variables

WEBHOOK_CACHE_S = 5
SERVING_SECRETS = (
    "VITRINE_ADMIN_TOKEN", "VITRINE_WEBHOOK_SECRET", "VITRINE_MLFLOW_URI", "VITRINE_API_KEYS", "VITRINE_CACHE_URL",
    "VITRINE_PROFILES_URL", "VITRINE_ENGINE_ADDRESS", "VITRINE_ENGINE_TOKEN", *CLOUD,
)  # fmt: skip
"""Variables that a replica needs although they are, or may hold, secrets; the catalogue's password is none of them."""
"""How long MLflow remembers its list of webhooks (its default is 60)."""


def secret(path: Path) -> str:
    """A random secret of this home, generated once, mode 0600."""
    if not path.is_file():
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text().strip()


def fernet_key(text: str) -> str:
    """A key for MLflow (32 bytes, base64) derived from the secret: another key could not decrypt what is stored."""
    return urlsafe_b64encode(sha256(text.encode()).digest()).decode()


def all_services(settings: Settings) -> list[Service]:
    """MLflow, Airflow and one serving replica, configured by the settings. Raises SettingsError for an unusable home."""
    if "?" in str(settings.home):
        raise SettingsError(
            f"VITRINE_HOME={str(settings.home)!r} holds a question mark, with which MLflow and Airflow cannot open their databases; "
            "choose a folder without one"
        )
    return [mlflow_service(settings), serving_service(settings), airflow_service(settings)]


def process_environment(settings: Settings) -> dict[str, str]:
    """All settings as environment variables, so that all processes of the demo agree."""
    return as_variables(settings) | {
        "VITRINE_STORE": settings.store_uri,
        "VITRINE_CATALOG": settings.catalog_uri,
        "VITRINE_PROGRESS_DIR": str(settings.home / "progress"),
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONWARNINGS": "ignore",
    }


def mlflow_service(settings: Settings) -> Service:
    host, port = address_of(settings.mlflow_uri)
    folder = settings.home / "mlflow"
    command = (
        sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--registry-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts",
    )  # fmt: skip
    environment = child_environment(process_environment(settings)) | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # Its message about a moved champion goes to Airflow on this machine, and its secret is kept encrypted.
        "MLFLOW_WEBHOOK_CACHE_TTL": str(WEBHOOK_CACHE_S),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": fernet_key(secret(folder / "webhooks.secret")),
    }
    return Service("mlflow", command, environment, f"{settings.mlflow_uri}/health")


def airflow_service(settings: Settings) -> Service:
    host, port = address_of(settings.airflow_url)
    folder = settings.home / "airflow"
    options = {
        "CORE__DAGS_FOLDER": PROJECT / "dags",
        "CORE__PLUGINS_FOLDER": PROJECT / "plugins",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": 4,
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{settings.airflow_user}:admin,operator:op,viewer:viewer",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": folder / "passwords.json",
        "CORE__EXECUTION_API_SERVER_URL": f"{settings.airflow_url}/execution/",
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow.db'}",
        "API__HOST": host,
        "API__PORT": port,
        "API__BASE_URL": settings.airflow_url,
        "API__WORKERS": 1,
        "API__SECRET_KEY": secret(folder / "api.secret"),
        "API_AUTH__JWT_SECRET": secret(folder / "jwt.secret"),
        "DAG_PROCESSOR__REFRESH_INTERVAL": 10,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 30,
        "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": 1,
        "LOGGING__LOGGING_LEVEL": "INFO",
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    environment = process_environment(settings) | {"AIRFLOW_HOME": str(folder)}
    environment |= {f"AIRFLOW__{name}": str(value) for name, value in options.items()}
    _write_passwords(folder / "passwords.json", settings)
    command = (sys.executable, "-m", "airflow", "standalone")
    return Service("airflow", command, environment, f"{settings.airflow_url}/api/v2/monitor/health")


def serving_service(settings: Settings) -> Service:
    host, port = address_of(settings.serving_urls[0])
    environment = child_environment(process_environment(settings), SERVING_SECRETS) | {
        "VITRINE_HOST": host,
        "VITRINE_PORT": str(port),
        "VITRINE_CACHE": str(settings.home / "serving" / "cache"),
        "VITRINE_NOTICE": "" if settings.catalog else NOTICE,
    }
    command = (sys.executable, "-m", "serving.main")
    return Service("serving", command, environment, f"{settings.serving_urls[0]}/healthz")


def _write_passwords(path: Path, settings: Settings) -> None:
    """The password file of Airflow's simple auth manager: our admin's, and generated ones for the others."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    wanted = known | {settings.airflow_user: settings.airflow_password}
    for user in ("operator", "viewer"):
        wanted.setdefault(user, secrets.token_urlsafe(12))
    if wanted != known:
        write_private(path, json.dumps(wanted))
