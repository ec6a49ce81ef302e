"""Judging encoders: held-out photos, baselines, gates, reports and cards."""
