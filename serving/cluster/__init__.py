"""Gateways and shard processes: distributed search over an index too large for one process."""
