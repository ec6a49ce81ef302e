"""An index version over several processes: shards that each hold a part of it, and the gateway's side of asking them."""
