"""The shadow check: the same queries against a slot of every replica, before any shopper sees it."""

from typing import Any

import httpx

from tasks.errors import VitrineError
from tasks.release.replicas import Replica
from tasks.release.whole_path import WholePath

LEAST_AGREEMENT = 0.99


def compare(replicas: list[Replica], slot: str, live_slot: str, path: WholePath) -> dict[str, Any]:
    """Whether every replica's `slot` gives what the version itself gave (`path.answers`), and how far that differs from live.

    `agreement` is the least share over replicas of answers whose top 10 are the same; `churn` the mean share of the live
    version's top 20 that the new one does not show. Raises VitrineError when a replica does not answer.
    """
    agreement, overlaps = 1.0, []
    for replica in replicas:
        same = 0
        for vector, expected in zip(path.vectors, path.answers, strict=True):
            try:
                found = replica.search(slot, vector.tolist())
                before = replica.search(live_slot, vector.tolist()) if live_slot and live_slot != slot else []
            except httpx.HTTPError as error:
                raise VitrineError(f"{replica.url}: the shadow check got no answer from {slot}: {error}") from None
            same += found[:10] == expected[:10]
            if before:
                overlaps.append(len(set(found) & set(before)) / len(before))
        agreement = min(agreement, same / max(len(path.answers), 1))
    churn = 1 - sum(overlaps) / len(overlaps) if overlaps else 0.0
    passed = agreement >= LEAST_AGREEMENT
    against = f", {churn:.0%} of the top 20 differ from live" if overlaps else ""
    summary = (
        f"{len(path.answers)} queries on {len(replicas)} replicas: {agreement:.0%} answered as the version itself does{against}"
    )
    return {"passed": passed, "agreement": agreement, "churn": churn, "queries": len(path.answers), "summary": summary}
