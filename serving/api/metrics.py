"""HTTP metrics: requests, rejected images, and connections turned away."""

from serving.api.open_connections import OpenConnections
from serving.telemetry.metrics import Metrics


class RequestMetrics:
    """Counts requests by route and status."""

    def __init__(self, metrics: Metrics) -> None:
        self.requests = metrics.counter("vitrine_requests_total", "Requests by route and status", ["route", "status"])
        self.took = metrics.histogram("vitrine_request_seconds", "Time per request", ["route"])
        self.rejected = metrics.counter("vitrine_rejected_total", "Images refused, by reason", ["reason"])
        turned_away = metrics.gauge(
            "vitrine_connections_turned_away", "Connections closed since the start because as many were open as may be"
        )
        metrics.before_scrape(lambda: turned_away.set(OpenConnections.turned_away))

    def count(self, route: str, status: int, took_s: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.took.labels(route).observe(took_s)
