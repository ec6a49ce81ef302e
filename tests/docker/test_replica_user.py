"""The user `replica` of the stack's MLflow is made however long MLflow takes to start; what refuses it is told."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tasks.settings import PROJECT
from tests.servers import free_port

SCRIPT = PROJECT / "docker" / "mlflow" / "replica_user.py"
SECRETS = {"MLFLOW_AUTH_ADMIN_PASSWORD": "the admin's", "MLFLOW_REPLICA_PASSWORD": "the replica's"}


@pytest.mark.parametrize(
    ("answers", "code", "says"),
    [
        ([503, 200], 0, "MLflow's user replica is made"),
        ([(400, b'{"error_code": "RESOURCE_ALREADY_EXISTS"}')], 0, "MLflow's user replica is there already"),
        ([500, (400, b"Password must be longer")], 1, "without whom no replica reads versions: 400 Password must be longer"),
        ([401], 1, "MLflow refuses to make the user replica"),
    ],
)
def test_it_is_made_once_the_server_answers_or_says_why_not(answers: list, code: int, says: str) -> None:
    asked: list[tuple[str, str]] = []

    class Mlflow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()))
            status, body = answer if isinstance(answer := answers[len(asked) - 1], tuple) else (answer, b"")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    port = free_port()
    command = [sys.executable, "-u", str(SCRIPT), f"http://127.0.0.1:{port}"]
    with subprocess.Popen(command, env=os.environ | SECRETS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as made:
        with pytest.raises(subprocess.TimeoutExpired):
            made.wait(0.5)  # nothing listens yet
        server = HTTPServer(("127.0.0.1", port), Mlflow)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            said, _ = made.communicate()
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
    assert made.returncode == code
    assert says in said
    assert not any(secret in said for secret in SECRETS.values())
    assert asked == [("/api/2.0/mlflow/users/create", '{"username": "replica", "password": "the replica\'s"}')] * len(answers)
