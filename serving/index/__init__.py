"""Vector search over the segments of an index version: engines behind one protocol, merging, refining, tombstones."""
