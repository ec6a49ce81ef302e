"""The steps of the pipelines: settings and registry in, one call of the domain's own functions, a small record out.

Records are plain dicts, since they travel between Airflow tasks: references and counts, never data.
"""
