"""One search, from decoding the photo to the ranked answer; caches, query samples and live recall."""
