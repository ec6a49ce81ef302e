"""What the pipeline does, as a plain Python package. Imports no Airflow: `dags/` decides when each step runs."""
