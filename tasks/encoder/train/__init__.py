"""Towers and their training: teacher, student, losses, the loop, checkpoints, multi-GPU."""
