"""The release board: an Airflow plugin page with its API, and the MLflow webhook. Rules live in `tasks`."""
