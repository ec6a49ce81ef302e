"""The shop's catalogue: where it comes from, its immutable snapshots, and a drawn sample of one."""
