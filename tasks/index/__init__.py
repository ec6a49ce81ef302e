"""The index: which family, trained once, built shard by shard, tuned on photos, and put together as a version."""
