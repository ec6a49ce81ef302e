"""Logs, metrics, traces and timings. Imports no other package of serving."""
