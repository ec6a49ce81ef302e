"""Release gates: end-to-end evaluation of a version, and one decision table."""
