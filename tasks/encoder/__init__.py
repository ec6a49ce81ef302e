"""Encoders: data, teacher and student training, export, quantisation, evaluation, gates. Needs torch; import inside a step."""
