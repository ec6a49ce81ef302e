"""File formats, and the functions that pipeline and serving must share exactly."""
