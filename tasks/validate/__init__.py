"""Great Expectations: what a snapshot and its embeddings must be like, and the data docs that show it."""
