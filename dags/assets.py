"""The assets that trigger DAGs."""

from airflow.sdk import Asset

ENCODER = Asset(name="product-encoder", uri="vitrine://product-encoder/champion", group="model")
INDEX = Asset(name="product-index", uri="vitrine://product-index/candidate", group="index")
COMPACTION = Asset(name="index-compaction", uri="vitrine://product-index/compaction", group="index")
"""Asks for a whole build: the live version has drifted too far from its base."""
