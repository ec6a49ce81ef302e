"""Capacity model: service times measured on a replica, and a queueing simulation that sizes a cluster."""
