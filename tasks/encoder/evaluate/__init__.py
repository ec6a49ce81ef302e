"""Evaluation of encoders: held-out photos, baselines, gates, reports and model cards."""
