"""Which versions stay, and what nothing needs any more."""
