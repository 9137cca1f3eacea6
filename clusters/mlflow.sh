#!/usr/bin/env bash
# MLflow on PostgreSQL, on this machine (Debian or Ubuntu): for sweeps of many trials, which wait for each other on SQLite.
#   clusters/mlflow.sh [HOST [ARTIFACTS]]      HOST 127.0.0.1, ARTIFACTS ~/mlartifacts; or e.g. 10.0.0.4 s3://lab/mlflow
# Whoever reaches HOST reads and writes all runs: keep it on loopback or a private network. Ctrl-C ends MLflow; the same
# command starts it again with all runs. MLflow talks to PostgreSQL by its socket as this user, so there is no password.
set -euo pipefail
host=${1:-127.0.0.1} artifacts=${2:-$HOME/mlartifacts} me=$(id -un)
as_root() { if [ "$me" = root ]; then "$@"; else sudo "$@"; fi; }
as_postgres() { (cd / && as_root runuser -u postgres -- "$@"); }

command -v pg_ctlcluster >/dev/null || as_root apt-get install -y -q postgresql
pg_isready -q || as_root service postgresql start
until pg_isready -q; do sleep 1; done
as_postgres psql -qtAc "SELECT 1 FROM pg_roles WHERE rolname = '$me'" | grep -q 1 || as_postgres createuser "$me"
as_postgres psql -qtAc "SELECT 1 FROM pg_database WHERE datname = 'mlflow'" | grep -q 1 || as_postgres createdb -O "$me" mlflow

python -c 'import psycopg2' 2>/dev/null || python -m pip install --quiet psycopg2-binary
echo "export MLFLOW_TRACKING_URI=http://$host:5000"
exec mlflow server --host "$host" --port 5000 --backend-store-uri 'postgresql+psycopg2:///mlflow?host=/var/run/postgresql' \
  --artifacts-destination "$artifacts"
