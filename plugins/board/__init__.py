"""The release board: a page in Airflow, its routes, and the hook that MLflow calls. Holds no rules of its own."""
