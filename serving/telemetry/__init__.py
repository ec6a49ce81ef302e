"""Logs, metrics, traces and timings. Uses no other room."""
