"""The gate table of index versions and the pure decision over it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from serving.contract.manifest import Counts, Gate
from tasks.encoder.evaluate.retrieval_metrics import paired_bootstrap

K = 10
SETTINGS = {
    "exact_recall": "VITRINE_RECALL_TARGET", "photo_recall": "VITRINE_MAX_RECALL_LOSS", "photo_slices": "VITRINE_MAX_SLICE_LOSS",
    "p99_ms": "VITRINE_P99_MS", "memory_mb": "VITRINE_REPLICA_MB", "quarantined": "VITRINE_MOST_QUARANTINED",
    "lost": "VITRINE_MAX_LOST", "churn": "VITRINE_MAX_CHURN", "age_h": "VITRINE_MAX_AGE_H",
}  # fmt: skip
"""Which setting moves a gate's threshold."""


@dataclass(frozen=True)
class Policy:
    """Thresholds. Fractions of 1, milliseconds, MiB, hours."""

    exact_recall: float = 0.95
    """Least recall@10 of the index against exact search over the same vectors."""
    photo_margin: float = 0.02
    """By how much Recall@10 of the whole path may lie below the live version's on the same photos; more only if it may be chance."""
    photo_worst: float = 0.05
    """The same, chance or not: with few photos the interval is wide."""
    slice_margin: float = 0.10
    """The same for each category with at least `slice_photos` photos, unless it may be chance."""
    slice_photos: int = 20
    p99_ms: float = 200.0
    """Most for one photo from bytes to the ranked answer under load, the document's budget."""
    memory_mb: float = 8192.0
    """Most that one version may take in a replica, which holds two."""
    quarantined: float = 0.02
    """Largest share of the catalogue without a usable picture."""
    lost: float = 0.10
    """Largest share of the live version's products that may be gone at once."""
    churn: float = 0.50
    """Largest share of the live version's top 20 that may be other products while the encoder is the same."""
    delta_share: float = 0.30
    """Largest share of rows in deltas; a rebuild is asked for long before (tasks/index/delta.py)."""
    age_h: float = 48.0
    """Oldest the catalogue may be that a version was made from."""


@dataclass(frozen=True)
class Reconciliation:
    """Result of the product-by-product reconciliation: the ids that are out of place."""

    missing: tuple[str, ...] = ()
    """In the catalogue, and neither servable nor in quarantine."""
    strange: tuple[str, ...] = ()
    """Servable, and not in the catalogue."""
    doubled: tuple[str, ...] = ()
    """Servable more than once, or servable and in quarantine."""

    @property
    def gaps(self) -> int:
        return len(self.missing) + len(self.strange) + len(self.doubled)


@dataclass(frozen=True)
class Comparison:
    """A candidate against the live version. `churn` is over `queries` replayed queries of this `origin`; `lost` are product ids."""

    queries: int = 0
    origin: str = ""
    churn: float = 0.0
    encoder_before: str = ""
    encoder_now: str = ""
    lost: tuple[str, ...] = ()
    products_before: int = 0

    @property
    def encoder_changed(self) -> bool:
        return self.encoder_before != self.encoder_now


@dataclass(frozen=True)
class Measurements:
    """Measurements of one version; photos are keyed by uri.

    `ranks`: where the photo's product is in the answer, 0 best, -1 not there. `rows` counts rows of segments, `hidden` those of
    them that later segments hide. `age_h`: how old the catalogue is that it was made from.
    """

    ranks: Mapping[str, int]
    categories: Mapping[str, str]
    exact_recall_at_10: float
    p50_ms: float
    p99_ms: float
    qps: float
    clients: int
    memory_mb: float
    counts: Counts
    rows: int
    hidden: int
    delta_share: float = 0.0
    age_h: float = 0.0
    reconciled: Reconciliation = field(default_factory=Reconciliation)
    compared: Comparison | None = None

    @property
    def photos(self) -> int:
        return len(self.ranks)

    @property
    def recall_at_1(self) -> float:
        return self._recall(1)

    @property
    def recall_at_10(self) -> float:
        return self._recall(K)

    def _recall(self, k: int) -> float:
        return float(np.mean([0 <= r < k for r in self.ranks.values()])) if self.ranks else 0.0


@dataclass(frozen=True)
class Decision:
    """Whether a version passes, with reasons and gates in the order of the table."""

    passed: bool
    reasons: tuple[str, ...]
    gates: tuple[Gate, ...] = ()

    @property
    def summary(self) -> str:
        return "; ".join(self.reasons)


def decide(candidate: Measurements, live: Measurements | None, policy: Policy) -> Decision:
    """Passes only when every gate does; the reasons name failed gates, or the number of passed ones.

    `live` is the live version measured on the same photos, None when there is none.
    """
    return decision_of(index_gates(candidate, live, policy))


def decision_of(gates: tuple[Gate, ...]) -> Decision:
    """The decision for evaluated gates."""
    failed = tuple(f"{g.name}: {g.reason}{_setting(g.name)}" for g in gates if not g.passed)
    return Decision(not failed, failed or (f"all {len(gates)} gates passed",), gates)


def _setting(gate: str) -> str:
    return f" ({SETTINGS[gate]})" if gate in SETTINGS else ""


def index_gates(candidate: Measurements, live: Measurements | None, policy: Policy) -> tuple[Gate, ...]:
    """The gate table of a candidate."""
    counts = candidate.counts
    load = f"one photo, bytes to answer, p99 in ms while {candidate.clients} ask at once ({candidate.qps:.0f} answers/s)"
    gates = [
        Gate.at_least(
            "exact_recall", candidate.exact_recall_at_10, policy.exact_recall, "recall@10 against exact search, on photos"
        ),
        *_of_photos(candidate, live, policy),
        Gate.at_most("p99_ms", candidate.p99_ms, policy.p99_ms, load),
        Gate.at_most("memory_mb", candidate.memory_mb, policy.memory_mb, "MiB that the version takes in a replica"),
        _reconciled(candidate),
        Gate.at_most(
            "quarantined", counts.quarantined / max(counts.catalogue, 1), policy.quarantined, "share without a usable picture"
        ),
        Gate.at_least("servable", counts.servable, 1, "products that can be found"),
        *(_against_live(candidate.compared, policy) if candidate.compared else ()),
        Gate.at_most("delta_share", candidate.delta_share, policy.delta_share, "share of rows in deltas, the rest in a base"),
        Gate.at_most("age_h", candidate.age_h, policy.age_h, "hours since the catalogue was read that it is made from"),
    ]
    return tuple(gates)


def _of_photos(candidate: Measurements, live: Measurements | None, policy: Policy) -> list[Gate]:
    """End-to-end Recall@10 against live, overall and for the worst category: paired by photo."""
    if not candidate.photos:
        return []
    ours = candidate.recall_at_10
    common = [photo for photo in candidate.ranks if live is not None and photo in live.ranks]
    if live is None or not common:
        return [Gate.at_least("photo_recall", ours, 0.0, "Recall@10 of the whole path; there is no live version to compare with")]
    lead = _hits(candidate, common) - _hits(live, common)
    found = paired_bootstrap(lead, np.zeros(len(lead)))
    bad = (found.value < -policy.photo_margin and found.high < 0) or found.value < -policy.photo_worst
    what = (
        f"Recall@10 of the whole path on {len(common)} photos; live has {live.recall_at_10:.3f}, the difference is {found.value:+.3f} "
        f"(95 %: {found.low:+.3f} to {found.high:+.3f})"
    )
    gates = [_gate("photo_recall", ours, live.recall_at_10 - policy.photo_margin, not bad, what, "at least")]
    worst = _worst_slice(lead, np.array([candidate.categories.get(p, "") for p in common]), policy.slice_photos)
    if worst is not None:
        name, value, high = worst
        passed = value >= -policy.slice_margin or high >= 0
        gates.append(
            _gate(
                "photo_slices", value, -policy.slice_margin, passed, f"the difference in the worst category, {name!r}", "at least"
            )
        )
    return gates


def _hits(version: Measurements, photos: list[str]) -> np.ndarray:
    return np.array([float(0 <= version.ranks[p] < K) for p in photos])


def _worst_slice(lead: np.ndarray, categories: np.ndarray, least: int) -> tuple[str, float, float] | None:
    """The category with the lowest mean difference, that mean, and the upper end of its interval."""
    means = {str(c): lead[categories == c] for c in np.unique(categories) if c and (categories == c).sum() >= least}
    if not means:
        return None
    name = min(means, key=lambda c: float(means[c].mean()))
    return name, float(means[name].mean()), paired_bootstrap(means[name], np.zeros(len(means[name]))).high


def _reconciled(candidate: Measurements) -> Gate:
    """catalogue = embedded + quarantined, embedded = servable = rows - hidden, product by product."""
    counts, found = candidate.counts, candidate.reconciled
    sums = {
        "catalogue - embedded - quarantined": counts.catalogue - counts.embedded - counts.quarantined,
        "embedded - servable": counts.embedded - counts.servable,
        "rows - hidden - servable": candidate.rows - candidate.hidden - counts.servable,
        "indexed - rows": counts.indexed - candidate.rows,
    }
    told = [f"{name} = {value}" for name, value in sums.items() if value]
    told += [f"{kind}: {_named(ids)}" for kind, ids in vars(found).items() if ids]
    what = (
        f"products out of place, of {counts.catalogue} in the catalogue = {counts.embedded} embedded + {counts.quarantined} quarantined, "
        f"{candidate.rows} rows - {candidate.hidden} hidden = {counts.servable} servable"
    )
    return Gate.at_most("reconciled", found.gaps + sum(abs(v) for v in sums.values()), 0, "; ".join([what, *told]))


def _against_live(comparison: Comparison, policy: Policy) -> list[Gate]:
    share = len(comparison.lost) / max(comparison.products_before, 1)
    lost = f"share of the live version's products that are gone ({len(comparison.lost)} of {comparison.products_before})"
    lost += f": {_named(comparison.lost)}" if comparison.lost else ""
    churn = f"share of live's top 20 that is other products now, on {comparison.origin or 'no queries'}"
    explained = comparison.encoder_changed
    if explained:
        churn += f"; explained by encoder version {comparison.encoder_now} in place of {comparison.encoder_before}"
    return [
        Gate.at_most("lost", share, policy.lost, lost),
        _gate("churn", comparison.churn, policy.churn, explained or comparison.churn <= policy.churn, churn, "at most"),
    ]


def _named(ids: tuple[str, ...], shown: int = 5) -> str:
    more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return ", ".join(ids[:shown]) + more


def _gate(name: str, value: float, threshold: float, passed: bool, what: str, bound: str) -> Gate:
    reason = f"{what}: {value:.4g}, asked for {bound} {threshold:.4g}"
    return Gate(name=name, value=float(value), threshold=float(threshold), passed=bool(passed), reason=reason)
