"""Monitoring of the live version: recall on real queries, drift, freshness, cache hit rates and cost."""
