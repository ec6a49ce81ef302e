"""The drawn sample catalogue: test data made by code."""
