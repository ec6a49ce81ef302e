"""Training data: labelled photos, pixels, augmentation, batches, and text tokens."""
