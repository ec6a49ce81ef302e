"""What the release board shows, as plain records: pure functions over versions, manifests and what replicas say of themselves."""
