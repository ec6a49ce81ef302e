"""Images to vectors: each image is embedded once per encoder version by all paths (nightly, hourly, stream)."""
