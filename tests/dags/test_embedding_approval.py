"""What follows a person's answer to the price of embedding, by Airflow's own rules."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.settings import Settings
from tests.airflow_server import airflow, environment

pytestmark = pytest.mark.slow
CASES = [
    ({"ask": False}, ("skipped", "success", "success")),
    ({"ask": True, "answer": "Approve"}, ("success", "success", "success")),
    ({"ask": True, "answer": "Reject"}, ("success", "skipped", "skipped")),
    ({"skip": "choose_encoder"}, ("skipped", "skipped", "skipped")),
    ({"changed": False}, ("skipped", "skipped", "skipped")),
]


def test_it_embeds_when_nobody_is_asked_or_a_person_approves_and_otherwise_nothing_follows(
    airflow_tables: Path, tmp_path: Path
) -> None:
    environ = environment(replace(Settings(), home=tmp_path, airflow_password="admin"), airflow_tables)
    told = airflow(environ, "tests.dags.without_steps", json.dumps([case for case, _ in CASES]))
    done = [json.loads(line[4:]) for line in told.splitlines() if line.startswith("RUN ")]
    assert [(t["approve_embedding"], t["embed"], t["publish_candidate"]) for t in done] == [states for _, states in CASES]
