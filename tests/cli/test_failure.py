"""What the command line says where a command cannot do its work: a sentence that names the cause, never a traceback or a secret."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from tasks.cli.failure import sentence_of
from tasks.errors import VitrineError


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "HOME": str(tmp_path),
        "MLFLOW_URI": "http://me:hidden@mlflow:5000",
        "ADMIN_TOKEN": "hidden-token",
    }.items():
        monkeypatch.setenv(f"VITRINE_{name}", value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (VitrineError("no version, see hidden-token"), "no version, see ********"),
        (PermissionError(13, "Permission denied", "/srv/out"), "Permission denied: /srv/out"),
        (
            OSError("AWS Error ACCESS_DENIED during HeadObject operation\nmore"),
            "AWS Error ACCESS_DENIED during HeadObject operation",
        ),
        (
            MlflowException("Permission denied", error_code=PERMISSION_DENIED),
            "MLflow at http://********@mlflow:5000 does not let this user do that: set MLFLOW_TRACKING_USERNAME and ",
        ),
        (
            MlflowException("API request failed with error code 502 != 200"),
            "MLflow at http://********@mlflow:5000 refuses: API request failed",
        ),
        (httpx.ReadTimeout("timed out"), "a server does not answer as it should: ReadTimeout, timed out"),
        (KeyError("a bug"), ""),
    ],
)
def test_what_is_expected_to_go_wrong_is_one_sentence_and_a_bug_is_none(error: Exception, sentence: str) -> None:
    said = sentence_of(error)
    assert said.startswith(sentence)
    assert bool(said) is bool(sentence)
    assert "\n" not in said
    assert "hidden" not in said


def test_a_setting_that_cannot_be_read_is_a_sentence_although_all_others_are_read_for_masking(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VITRINE_SHARDS", "two")
    done = subprocess.run([sys.executable, "-m", "tasks.cli", "settings"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "vitrine: VITRINE_SHARDS='two' is not a whole number\n"
