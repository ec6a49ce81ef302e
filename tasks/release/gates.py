"""What an index version must show before it may serve: one table of named checks, and one pure decision."""

from dataclasses import dataclass

from serving.contract.manifest import Counts, Gate


@dataclass(frozen=True)
class Policy:
    """The thresholds. Recall figures are shares, times milliseconds."""

    exact_recall: float = 0.95
    """Least recall@10 of the index against exact search over the same vectors."""
    photo_recall_margin: float = 0.02
    """By how much Recall@10 of the whole path may lie below the live version's on the same photos."""
    p99_ms: float = 200.0
    """Most for one photo from bytes to the ranked answer, the document's budget."""
    max_quarantined: float = 0.02
    """Largest share of the catalogue without a usable picture."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one version on the held-out photos. `hits` are per photo, in the photos' order."""

    photos: int
    recall_at_1: float
    recall_at_10: float
    exact_recall_at_10: float
    p50_ms: float
    p99_ms: float
    counts: Counts
    gap: tuple[str, ...] = ()
    """Product ids that are neither servable nor in quarantine, or servable and not in the catalogue."""


@dataclass(frozen=True)
class Decision:
    """Whether a version may go on, and why, in the order of the table."""

    passed: bool
    reasons: tuple[str, ...]

    @property
    def summary(self) -> str:
        return "; ".join(self.reasons)


def index_gates(candidate: Measured, live: Measured | None, policy: Policy) -> tuple[Gate, ...]:
    """The table of checks of a candidate; `live` is the live version measured on the same photos, None when there is none."""
    counts = candidate.counts
    missing = counts.catalogue - counts.embedded - counts.quarantined
    unservable = counts.embedded - counts.servable
    named = f": {', '.join(candidate.gap[:5])}" if candidate.gap else ""
    gates = [
        _at_least("exact_recall", candidate.exact_recall_at_10, policy.exact_recall, "recall@10 against exact search, on photos"),
        _at_most("p99_ms", candidate.p99_ms, policy.p99_ms, "one photo, bytes to answer, p99 in ms"),
        _at_most("reconciled", abs(missing) + abs(unservable) + len(candidate.gap), 0, f"products that went missing{named}"),
        _at_most(
            "quarantined", counts.quarantined / max(counts.catalogue, 1), policy.max_quarantined, "share without a usable picture"
        ),
        _at_least("servable", counts.servable, 1, "products that can be found"),
    ]
    if candidate.photos:
        floor = live.recall_at_10 - policy.photo_recall_margin if live is not None else 0.0
        against = f"live has {live.recall_at_10:.3f}" if live is not None else "there is no live version"
        gates.append(_at_least("photo_recall", candidate.recall_at_10, floor, f"Recall@10 of the whole path, {against}"))
    return tuple(gates)


def decide(gates: tuple[Gate, ...]) -> Decision:
    """Passes only when every gate does; the reasons name each gate that does not, or say how many held."""
    failed = tuple(f"{g.name}: {g.reason}" for g in gates if not g.passed)
    return Decision(not failed, failed or (f"all {len(gates)} gates passed",))


def _at_least(name: str, value: float, threshold: float, what: str) -> Gate:
    return _gate(name, value, threshold, value >= threshold, what, "at least")


def _at_most(name: str, value: float, threshold: float, what: str) -> Gate:
    return _gate(name, value, threshold, value <= threshold, what, "at most")


def _gate(name: str, value: float, threshold: float, passed: bool, what: str, bound: str) -> Gate:
    reason = f"{what}: {value:.4g}, asked for {bound} {threshold:.4g}"
    return Gate(name=name, value=float(value), threshold=float(threshold), passed=bool(passed), reason=reason)
