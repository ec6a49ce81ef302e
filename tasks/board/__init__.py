"""The data of the release board as plain records: pure functions over versions, manifests and replica states."""
