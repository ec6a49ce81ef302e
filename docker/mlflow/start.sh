#!/bin/sh
# MLflow's server of docker/compose.yaml. Its addresses and secrets come from the environment (MLFLOW_…), none from the command line.
# The user `replica`, who may read and no more, is made once the server answers.
set -eu
sed "s#^database_uri = .*#database_uri = $MLFLOW_AUTH_DATABASE_URI#" /etc/mlflow/auth.ini >/tmp/auth.ini
export MLFLOW_AUTH_CONFIG_PATH=/tmp/auth.ini
python /etc/mlflow/replica_user.py &
exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 2 --serve-artifacts
