"""Encoders: data, teacher, student, export, quantising, evaluation, gates. Imports torch; import it inside a step."""
