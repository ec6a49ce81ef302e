"""Makes MLflow's user `replica` with the password of MLFLOW_REPLICA_PASSWORD, once the server answers; one that is there is kept.

Waits as long as the server takes: its first start makes tables, which lasts minutes on a busy machine. What the server refuses for good
is told in the log, and ends this with 1.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode

PAUSE_S = 1.0


def request(server: str) -> urllib.request.Request:
    admin = b64encode(f"pipeline:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}".encode()).decode()
    user = json.dumps({"username": "replica", "password": os.environ["MLFLOW_REPLICA_PASSWORD"]}).encode()
    headers = {"Authorization": f"Basic {admin}", "Content-Type": "application/json"}
    return urllib.request.Request(f"{server}/api/2.0/mlflow/users/create", user, headers)


def make_user(server: str) -> str:
    """What became of it, once the server has decided; "" where it is not ready."""
    try:
        urllib.request.urlopen(request(server), timeout=10).close()
        return "made"
    except urllib.error.HTTPError as error:
        words = error.read().decode(errors="replace")
        if "RESOURCE_ALREADY_EXISTS" in words:
            return "there already"
        if error.code < 500:
            sys.exit(f"MLflow refuses to make the user replica, without whom no replica reads versions: {error.code} {words}")
    except OSError:
        pass
    return ""


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:5000"
    while not (became := make_user(address)):
        time.sleep(PAUSE_S)
    print(f"MLflow's user replica is {became}", flush=True)
