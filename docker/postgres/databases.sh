#!/bin/sh
# At PostgreSQL's first start: a database and a user for Airflow, one for MLflow with its users, and one for the sample shop.
set -eu
make() { # user, password, databases…
  user=$1 password=$2
  shift 2
  printf "CREATE USER %s PASSWORD '%s';\n" "$user" "$password"
  for database; do printf 'CREATE DATABASE %s OWNER %s;\nREVOKE ALL ON DATABASE %s FROM PUBLIC;\n' "$database" "$user" "$database"; done
}
{
  make airflow "$AIRFLOW_DB_PASSWORD" airflow
  make mlflow "$MLFLOW_DB_PASSWORD" mlflow mlflow_auth
  make shop "$SHOP_DB_PASSWORD" shop
} | psql -v ON_ERROR_STOP=1 --username postgres --dbname postgres
