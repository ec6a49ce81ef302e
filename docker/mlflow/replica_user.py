"""Makes MLflow's user `replica` with the password of MLFLOW_REPLICA_PASSWORD, once the server answers; one that is there is kept."""

import json
import os
import time
import urllib.error
import urllib.request
from base64 import b64encode

WAIT_S = 300
server = "http://127.0.0.1:5000"
admin = b64encode(f"pipeline:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}".encode()).decode()
user = json.dumps({"username": "replica", "password": os.environ["MLFLOW_REPLICA_PASSWORD"]}).encode()
make = urllib.request.Request(
    f"{server}/api/2.0/mlflow/users/create", user, {"Authorization": f"Basic {admin}", "Content-Type": "application/json"}
)
end = time.monotonic() + WAIT_S
while time.monotonic() < end:
    try:
        urllib.request.urlopen(make, timeout=10).close()
        break
    except urllib.error.HTTPError as error:
        if b"RESOURCE_ALREADY_EXISTS" in error.read():
            break
    except OSError:
        pass
    time.sleep(1)
