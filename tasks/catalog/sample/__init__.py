"""Generated sample catalogue."""
