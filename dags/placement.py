"""Where a task runs: the queue, the pool and the pod template of its kind, as the settings name them.

Airflow stores them with the task when it parses a DAG file. So these settings are read from the DAG processor's environment; in a
worker's they change nothing.
"""

import os
from typing import Any

from airflow.configuration import conf

from tasks.errors import SettingsError

KINDS = {
    "small": "a few hundred MB and one core: the registry, queues, other servers",
    "large": "an index or an encoder in memory, and every core: checks, shards, tuning, gates",
    "spark": "the driver of the embedding job; of local[n] the job itself",
    "gpu": "training",
}


def placed(kind: str) -> dict[str, Any]:
    """The arguments of an operator whose task is of this kind; {} where no setting names any kind. Raises SettingsError.

    Where only other kinds are named, Airflow's defaults are given: what a DAG gives all its tasks (`small`) would count otherwise.
    """
    found: dict[str, Any] = {}
    if queues := _named("VITRINE_QUEUES"):
        found["queue"] = queues.get(kind) or conf.get_mandatory_value("operators", "default_queue")
    if pools := _named("VITRINE_POOLS"):
        found["pool"] = pools.get(kind, "default_pool")
    if templates := _named("VITRINE_POD_TEMPLATES"):
        found["executor_config"] = {"pod_template_file": templates[kind]} if kind in templates else {}
    return found


def _named(variable: str) -> dict[str, str]:
    """Names by kind, of a variable such as "gpu=gpu-machines,small=default"; read here, as `Settings` is no light import."""
    entries = [entry.strip() for entry in os.environ.get(variable, "").split(",") if entry.strip()]
    if wrong := [entry for entry in entries if entry.partition("=")[0] not in KINDS or not entry.partition("=")[2]]:
        raise SettingsError(f"{variable}: {wrong[0]!r} is not <kind>=<name> with a kind of {', '.join(KINDS)}")
    return {kind: name for kind, _, name in (entry.partition("=") for entry in entries)}
