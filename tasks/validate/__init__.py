"""Validation of snapshots and embeddings with Great Expectations, and its data docs."""
