"""Hourly checks of the live version: one table of named checks over measured figures. Pure."""

from dataclasses import asdict, dataclass, field

from serving.contract.manifest import Gate
from tasks.watch.freshness import Freshness


@dataclass(frozen=True)
class Limits:
    """Thresholds. Fractions of 1, milliseconds, seconds."""

    live_recall: float = 0.95
    """Least recall@10 against exact search on real queries, over base and deltas."""
    drift: float = 0.25
    """Most for the population stability index, chance subtracted: over it "much has moved" (Siddiqi 2006)."""
    age_s: float = 26 * 3600.0
    """Most between now and the newest servable change: a nightly build and two hours. 0: not asked."""
    p99_ms: float = 200.0
    error_share: float = 0.01
    least_requests: int = 100
    """Errors and times of fewer requests are not judged."""


@dataclass(frozen=True)
class Figures:
    """One measurement of the live version. Drifts are None without enough data."""

    version: str
    encoder: str
    queries: int
    """Queries that recall was measured on; `real` says that shoppers sent them, `asked` what they are otherwise."""
    real: bool
    recall: float
    embedding_drift: float | None
    query_drift: float | None
    delta_share: float
    tombstone_share: float
    compaction: str
    """Why the index should be rebuilt, "" while it need not."""
    freshness: Freshness
    hit_rates: dict[str, float]
    requests: float
    error_share: float
    p99_ms: float
    silent: tuple[str, ...]
    cost_per_million_products: float
    cost_per_thousand_queries: float
    notes: tuple[str, ...] = field(default=())
    asked: str = "held-out photos"

    def flat(self) -> dict[str, float]:
        """All numeric figures by name, for time series."""
        values = {k: v for k, v in asdict(self).items() if isinstance(v, int | float) and not isinstance(v, bool)}
        hits = {f"hit_rate.{name}": rate for name, rate in self.hit_rates.items()}
        fresh = {f"freshness.{name}": float(value) for name, value in asdict(self.freshness).items()}
        return {k: float(v) for k, v in (values | hits | fresh).items()}


def checks(figures: Figures, limits: Limits) -> tuple[Gate, ...]:
    """The table of checks. Figures that could not be measured are skipped; `figures.notes` says so."""
    kind = "real queries" if figures.real else f"{figures.asked} (too few real queries were sampled)"
    recall = f"Recall@10 of the live version against exact search, on {figures.queries} {kind}"
    table = [
        Gate.at_least("live_recall", figures.recall, limits.live_recall, recall, "{:.3f}"),
        Gate.at_most(
            "silent_replicas", len(figures.silent), 0, f"Replicas that do not respond{_named(figures.silent)}", "{:.0f}"
        ),
    ]
    for name, value, what in (
        ("embedding_drift", figures.embedding_drift, "Drift of the products' vectors"),
        ("query_drift", figures.query_drift, "Drift of shoppers' queries"),
    ):
        if value is not None:
            index = f"{what} since the first measurement (population stability index beyond chance)"
            table.append(Gate.at_most(name, value, limits.drift, index, "{:.3f}"))
    if limits.age_s and (age_s := figures.freshness.age_s):
        age = f"Newest change that shoppers can find is {age_s / 3600:.1f} h old (at most {limits.age_s / 3600:.1f} h is allowed)"
        table.append(Gate.judged("age_s", age_s, limits.age_s, age_s <= limits.age_s, age))
    if figures.requests >= limits.least_requests:
        table.append(Gate.at_most("p99_ms", figures.p99_ms, limits.p99_ms, "p99 of shoppers' requests", "{:.0f} ms"))
        table.append(
            Gate.at_most("errors", figures.error_share, limits.error_share, "Requests answered with a server error", "{:.2%}")
        )
    return tuple(table)


def _named(urls: tuple[str, ...]) -> str:
    return f" ({', '.join(urls)})" if urls else ""
