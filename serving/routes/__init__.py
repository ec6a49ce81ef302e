"""The HTTP routes, one module for each subject. Each is thin: it checks, hands the work to a bounded pool, and answers."""
