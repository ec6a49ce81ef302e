"""MLflow: runs, artifacts, and the two registered models. The only package of the pipeline that talks to MLflow."""

from tasks.registry.artifacts import ENCODER_PATH, INDEX_PATH, Registry, unreachable
from tasks.registry.runs import ORIGIN_NAME, ORIGIN_URL, RUN_KEY, Origin, Run, RunRef
from tasks.registry.versions import ENCODER_MODEL, INDEX_EXPERIMENT, INDEX_MODEL, Version

__all__ = [
    "ENCODER_MODEL", "ENCODER_PATH", "INDEX_EXPERIMENT", "INDEX_MODEL", "INDEX_PATH", "ORIGIN_NAME", "ORIGIN_URL", "RUN_KEY", "Origin",
    "Registry", "Run", "RunRef", "Version", "unreachable",
]  # fmt: skip
