"""Retention of versions, and garbage collection."""
