"""The HTTP layer: routes, schemas, uploads, authentication, admission, errors and middleware."""
