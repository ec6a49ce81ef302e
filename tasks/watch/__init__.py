"""Watching what is live: recall on real queries, drift, freshness, caches and cost. Each module measures one of them."""
