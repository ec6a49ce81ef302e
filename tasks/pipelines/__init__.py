"""What DAG tasks call, one module per DAG: settings and registry in, one call of the domain, a small record out."""
