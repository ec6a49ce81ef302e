"""Training data: labelled photos, pixels, augmentation, batches, and products' words as tokens."""
