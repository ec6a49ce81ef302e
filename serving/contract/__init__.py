"""Formats and the few functions that both the pipeline and serving must do in exactly the same way."""
