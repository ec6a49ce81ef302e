"""The index: choice of family, template training, shard builds, tuning, deltas, verification."""
