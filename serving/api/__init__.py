"""HTTP in and out: routes, schemas, uploads, who may call, admission, errors and middleware."""
