"""Finding, fetching, verifying, holding and flipping index versions."""
