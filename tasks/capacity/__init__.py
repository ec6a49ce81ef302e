"""How many pods carry a load: service times measured on a replica, and a queueing simulation over them."""
