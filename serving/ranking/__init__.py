"""What an answer is ranked and filtered by: features, filters, the ranker and its rules, profiles."""
