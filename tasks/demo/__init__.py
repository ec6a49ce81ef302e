"""`make demo`: starts the real services on this machine, follows the chain of DAGs, and shows search results."""
