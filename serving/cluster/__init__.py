"""Gateways and shard processes: an index that is too large for one process."""
