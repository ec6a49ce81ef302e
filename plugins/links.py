"""Links in Airflow's navigation to the other places where a version is looked at: MLflow and the search page."""

from airflow.plugins_manager import AirflowPlugin

from tasks.settings import Settings

SETTINGS = Settings.load()


class VitrineLinks(AirflowPlugin):
    """Holds no rules: two external links."""

    name = "vitrine_links"
    external_views = (
        [{"name": "MLflow", "href": SETTINGS.mlflow_uri, "destination": "nav", "category": "browse", "url_route": "vitrine-mlflow"}]
        + [{"name": "Search page", "href": url, "destination": "nav", "category": "browse", "url_route": "vitrine-search"}
           for url in SETTINGS.serving_urls[:1]]
    )  # fmt: skip
