"""One search, from decoding the photo to the ranked answer; caches, samples and live recall."""
