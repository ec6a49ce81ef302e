"""What recall is measured on: held-out photos, and views of product pictures that stand in for them."""
