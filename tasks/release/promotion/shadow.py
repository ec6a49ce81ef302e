"""The shadow check: replays queries against the new slot of every replica before it serves shoppers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from tasks.errors import ServiceAway
from tasks.records import Record
from tasks.release.promotion.replay import ReplayQueries, churn
from tasks.release.promotion.serving_replicas import Replica, for_each_replica

LEAST_AGREEMENT = 0.99


@dataclass(frozen=True)
class ShadowReport(Record):
    """The outcome of a shadow check.

    `agreement` is the least share over replicas of answers whose top 10 are the same; `churn` the mean share of the live version's
    top 20 that the new one does not show; `queries` how many were replayed and `origin` which. `text` is the report for whoever
    approves the promotion, in Markdown.
    """

    passed: bool
    agreement: float
    churn: float
    queries: int
    origin: str
    summary: str
    text: str = ""
    links: dict[str, str] = field(default_factory=dict)


def compare(
    replicas: Sequence[Replica], slot: str, live_slot: str, queries: ReplayQueries, expected: Sequence[Sequence[str]]
) -> ShadowReport:
    """Whether every replica's `slot` returns the `expected` answers of the version opened from the registry, and the churn.

    Raises ServiceAway when a replica does not answer.
    """
    other = live_slot if live_slot and live_slot != slot and queries.live_vectors is not None else ""

    def ask(replica: Replica) -> tuple[float, float]:
        try:
            found = [replica.search(slot, v.tolist()) for v in queries.vectors]
            before = [replica.search(other, v.tolist()) for v in queries.live_vectors] if other else []  # type: ignore[union-attr]
        except httpx.HTTPError as error:
            raise ServiceAway(f"{replica.url}: the shadow check got no answer from {slot}: {error}") from None
        same = sum(list(f[:10]) == list(e[:10]) for f, e in zip(found, expected, strict=True))
        return same / max(len(expected), 1) if expected else 1.0, churn(found, before) if other else 0.0

    told = for_each_replica(replicas, ask)
    agreement = min((a for a, _ in told), default=1.0)
    changed = max((c for _, c in told), default=0.0)
    worst = [r.url for r, (a, _) in zip(replicas, told, strict=True) if a < LEAST_AGREEMENT]
    against = f"; {changed:.0%} of the live version's top 20 change" if other else ""
    named = f"; too few on {', '.join(worst)}" if worst else ""
    summary = (
        f"{queries.origin} replayed on {len(replicas)} replicas: {agreement:.0%} of the answers equal those of the version opened from the "
        f"registry (at least {LEAST_AGREEMENT:.0%} is required){named}{against}"
    )
    return ShadowReport(agreement >= LEAST_AGREEMENT, agreement, changed, len(queries), queries.origin, summary)
