"""`make demo`: the real services on this machine, the chain of DAGs followed in the terminal, and the answers shown."""
