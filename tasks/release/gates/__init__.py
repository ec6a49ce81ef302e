"""What a version must show before it may serve: measured end to end, judged by one table."""
