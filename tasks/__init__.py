"""The pipeline as a plain Python package. Imports no Airflow: `dags/` decides when each step runs."""
