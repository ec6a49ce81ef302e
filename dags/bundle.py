"""The eight DAGs as a bundle of Airflow, for an Airflow of one's own that `vitrine` is installed into."""

from pathlib import Path
from typing import Any

from airflow.dag_processing.bundles.local import LocalDagBundle


class VitrineBundle(LocalDagBundle):
    """The folder that this file is installed in: classpath "dags.bundle.VitrineBundle" without further arguments."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(path=str(Path(__file__).resolve().parent), **kwargs)
