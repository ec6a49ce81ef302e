"""The steps that DAG tasks call, one module per DAG: reads settings and registry, calls the domain, returns a small record."""
