"""Filtering and ranking of candidates: features, filters, ranker, business rules, user profiles."""
