"""Encoder versions in the form that inference servers take: model repositories, and what runs in the server."""
