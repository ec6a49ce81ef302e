"""Real encoder servers, in an environment of their own: run by make e2e-encoder-servers alone."""
