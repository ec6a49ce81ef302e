"""Releases: gates, promotion, retention, and inspection of index versions."""
