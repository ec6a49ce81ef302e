"""The shop's catalogue: sources, immutable snapshots, change streams, and generated sample data."""
