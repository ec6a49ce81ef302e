"""What the command line says where a command cannot do its work: a sentence that names the cause, never a traceback or a secret."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from serving.versions.version_source import MLFLOW_TIMEOUTS
from tasks.cli import main
from tasks.cli.failure import sentence_of
from tasks.cli.search import search
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
            "MLflow at http://********@mlflow:5000 does not answer as it should: API request failed",
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


@pytest.mark.parametrize(
    ("words", "environ", "says"),
    [
        (
            ("catalog", "check", "s3://bucket/shop"),
            {},
            "s3://bucket/shop is no catalogue: expected sqlite:///file, postgresql://…",
        ),
        (("catalog", "check", "no:x:y"), {}, "no:x:y: there is no such catalogue folder"),
        (("catalog", "check", "postgresql://u:hidden@127.0.0.1:9/x"), {}, "port 9 failed: Connection refused"),
        (("search", __file__), {"SERVING_URLS": ""}, "VITRINE_SERVING_URLS names no replica that could be asked"),
        (
            ("capacity",),
            {"SERVING_URLS": ""},
            "'' does not answer as a replica (UnsupportedProtocol); start one, or name another",
        ),
        (("release", "list"), {"MLFLOW_URI": "mlruns"}, "VITRINE_MLFLOW_URI='mlruns' is no address of an MLflow server"),
        (("settings",), {"SHARDS": "two"}, "VITRINE_SHARDS='two' is not a whole number"),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, tuple) else "",
)
def test_wrong_input_is_answered_by_its_cause(
    words: tuple[str, ...],
    environ: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through `main`, which says it; names with colons are shown as they are."""
    for name, value in environ.items():
        monkeypatch.setenv(f"VITRINE_{name}", value)
    for name, value in {
        **MLFLOW_TIMEOUTS,
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }.items():
        monkeypatch.setenv(name, value)  # what `main` sets is taken back
    monkeypatch.setattr(sys, "argv", ["vitrine", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert says in shown.out
    assert "hidden" not in shown.out + shown.err


@pytest.mark.parametrize("answer", [b"[]", b"{}", b"<html>"])
def test_a_server_that_is_no_replica_is_named(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("VITRINE_SERVING_URLS", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(VitrineError, match="is no replica: status 200"):
            search(Path(__file__))
