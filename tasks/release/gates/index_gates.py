"""The gate table of index versions and the pure decision over it. What it decides on is measured in evaluate.py (first_phase_recall)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from serving.contract.counts import Counts
from serving.contract.manifest import Gate
from serving.contract.provenance import QuerySet
from tasks.encoder.evaluate.retrieval_metrics import Interval, paired_bootstrap
from tasks.queries.photo_loss import loss_on_photos
from tasks.queries.query_words import describe, hits, measure_name, query_set, unless_photos
from tasks.release.gates.comparison import MISMATCHES, Comparison, Reconciliation

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
class Measurements:
    """Measurements of one version; photos, and the views that stand in for some, are keyed by uri.

    `ranks`: where the query's product is in the answer, 0 best, -1 not there. `rows` counts rows of segments, `hidden` those of
    them that later segments hide, `pictures` the vectors that none hides, `titles` those of them that are of titles. `age_h`: how old
    the catalogue is that it was made from.
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
    pictures: int = 0
    titles: int = 0

    @property
    def photos(self) -> int:
        return len(self.ranks)

    @property
    def queries(self) -> QuerySet | None:
        """How many of them are photos, and how many synthetic."""
        return query_set(self.ranks)

    @property
    def hit_rate(self) -> float:
        """The share of answered queries (tasks/queries/query_words.py): of photos alone it is Recall@10."""
        return float(np.mean(_hits(self, list(self.ranks)))) if self.ranks else 0.0

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
    return f" [setting: {SETTINGS[gate]}]" if gate in SETTINGS else ""


def index_gates(candidate: Measurements, live: Measurements | None, policy: Policy) -> tuple[Gate, ...]:
    """The gate table of a candidate."""
    counts = candidate.counts
    load = f"p99 of a photo search with {candidate.clients} concurrent clients ({candidate.qps:.0f} searches/s)"
    unusable = f"Products without a usable picture, {counts.quarantined} of {counts.catalogue}"
    gates = [
        Gate.at_least(
            "exact_recall", candidate.exact_recall_at_10, policy.exact_recall,
            f"Recall@10 of the index against exact search over the same vectors{unless_photos(candidate.queries)}", "{:.3f}",
        ),
        *_of_photos(candidate, live, policy),
        Gate.at_most("p99_ms", candidate.p99_ms, policy.p99_ms, f"{load}{_small_pictures(candidate)}", "{:.0f} ms"),
        Gate.at_most("memory_mb", candidate.memory_mb, policy.memory_mb, "Memory of this version in a replica", "{:.0f} MiB"),
        _reconciled(candidate),
        Gate.at_most("quarantined", counts.quarantined / max(counts.catalogue, 1), policy.quarantined, unusable, "{:.1%}"),
        Gate.at_least("servable", counts.servable, 1, "Searchable products", "{:.0f}"),
        *(_against_live(candidate.compared, policy) if candidate.compared else ()),
        Gate.at_most(
            "delta_share", candidate.delta_share, policy.delta_share, "Part of the index added by updates since the last rebuild",
            "{:.1%}",
        ),
        Gate.at_most("age_h", candidate.age_h, policy.age_h, "Age of the catalogue data", "{:.1f} h"),
    ]  # fmt: skip
    return tuple(gates)


def _of_photos(candidate: Measurements, live: Measurements | None, policy: Policy) -> list[Gate]:
    """End-to-end recall against live, overall and for the worst category: paired by query."""
    if not candidate.photos:
        return []
    ours, asked, recall = candidate.hit_rate, describe(candidate.queries), measure_name(candidate.queries)
    common = [photo for photo in candidate.ranks if live is not None and photo in live.ranks]
    if live is None or not common:
        why = "there is no live version to compare with" if live is None else "the live version answers to none of these queries"
        return [Gate.judged("photo_recall", ours, 0.0, True, f"{recall} on {asked}: {ours:.3f} (any value passes: {why})")]
    lead = _hits(candidate, common) - _hits(live, common)
    found = paired_bootstrap(lead, np.zeros(len(lead)))
    what = (
        f"{recall} on {asked}: {ours:.3f} (live version: {live.hit_rate:.3f}); difference on the {describe(query_set(common), 'photos')} "
        f"measured on both {found.text}"
    )
    passed, verdict = _judge_loss(found, policy.photo_margin, policy.photo_worst)
    if alone := loss_on_photos(common, lead, policy.photo_margin):
        passed, verdict = False, f"{verdict}{alone}"
    gates = [Gate.judged("photo_recall", ours, live.hit_rate - policy.photo_margin, passed, f"{what}: {verdict}")]
    worst = _worst_slice(lead, np.array([candidate.categories.get(p, "") for p in common]), policy.slice_photos)
    if worst is not None:
        name, found = worst
        noun = "queries" if candidate.queries and candidate.queries.synthetic else "photos"
        what = f"{recall} in the category that compares worst with the live version, {name!r} ({found.n} {noun}): difference {found.text}"
        passed, verdict = _judge_loss(found, policy.slice_margin)
        gates.append(Gate.judged("photo_slices", found.value, -policy.slice_margin, passed, f"{what}: {verdict}"))
    return gates


def _judge_loss(found: Interval, margin: float, worst: float = 1.0) -> tuple[bool, str]:
    """Whether a difference of recall is accepted, and why: beyond `margin` only if it may be chance, beyond `worst` never."""
    if found.value >= -margin:
        return True, "no loss" if found.value >= 0 else f"a loss within the allowed {margin:.2f}"
    if found.high < 0:
        return False, f"a loss of more than {margin:.2f}, too clear to be chance"
    if found.value < -worst:
        return False, f"a loss of more than {worst:.2f}, which is refused even though it may be chance"
    return True, f"a loss of more than {margin:.2f} that may be chance, so it is accepted"


def _hits(version: Measurements, photos: list[str]) -> np.ndarray:
    return hits(photos, [version.ranks[p] + 1 for p in photos])


def _small_pictures(measured: Measurements) -> str:
    """What the time of a synthetic query does not hold."""
    queries = measured.queries
    return (
        "; synthetic queries are small pictures: a phone's photo takes longer to decode" if queries and queries.synthetic else ""
    )


def _worst_slice(lead: np.ndarray, categories: np.ndarray, least: int) -> tuple[str, Interval] | None:
    """The category with the lowest mean difference, and that difference with its interval."""
    means = {str(c): lead[categories == c] for c in np.unique(categories) if c and (categories == c).sum() >= least}
    if not means:
        return None
    name = min(means, key=lambda c: float(means[c].mean()))
    return name, paired_bootstrap(means[name], np.zeros(len(means[name])))


def _reconciled(candidate: Measurements) -> Gate:
    """catalogue = embedded + quarantined, embedded = servable = rows - hidden, product by product."""
    counts, found = candidate.counts, candidate.reconciled
    live_rows = candidate.rows - candidate.hidden
    sums = [
        (
            counts.catalogue - counts.embedded - counts.quarantined,
            f"{counts.embedded} embedded and {counts.quarantined} quarantined products are not the catalogue's {counts.catalogue}",
        ),
        (counts.embedded - counts.servable, f"{counts.embedded} products are embedded, but {counts.servable} are searchable"),
        (
            live_rows - counts.servable,
            f"{candidate.rows} index rows, of which {candidate.hidden} were replaced or deleted, are not {counts.servable} searchable "
            "products",
        ),
        (counts.indexed - candidate.rows, f"the manifest counts {counts.indexed} index rows, but there are {candidate.rows}"),
    ]
    if counts.pictures is not None:
        text = f"the manifest counts {counts.pictures} pictures of searchable products, but there are {candidate.pictures}"
        sums.append((counts.pictures - candidate.pictures, text))
    titles = counts.titles or 0
    sums.append(
        (titles - candidate.titles, f"the manifest counts {titles} products without a picture, but there are {candidate.titles}")
    )
    mismatches = found.gaps + sum(abs(gap) for gap, _ in sums)
    if not mismatches:
        whole = f"Every one of the catalogue's {counts.catalogue} products is searchable ({counts.servable}) or in quarantine "
        return Gate.judged("reconciled", 0, 0, True, f"{whole}({counts.quarantined}){counts.set_aside}{counts.of_pictures}")
    told = [sentence for gap, sentence in sums if gap]
    told += [f"{MISMATCHES[kind]}: {_named(ids)}" for kind, ids in vars(found).items() if ids]
    reason = f"{mismatches} mismatch{'es' * (mismatches > 1)} between catalogue and index (none is allowed): {'; '.join(told)}"
    return Gate.judged("reconciled", mismatches, 0, False, reason)


def _against_live(comparison: Comparison, policy: Policy) -> list[Gate]:
    share = len(comparison.lost) / max(comparison.products_before, 1)
    named = f" ({_named(comparison.lost)})" if comparison.lost else ""
    lost = f"Products of the live version that are gone, {len(comparison.lost)} of {comparison.products_before}{named}"
    churn = f"Results that differ from the live version's top 20, on {comparison.origin or 'no queries'}"
    gates = [Gate.at_most("lost", share, policy.lost, lost, "{:.1%}")]
    if comparison.encoder_changed:
        change = f"from version {comparison.encoder_before} to {comparison.encoder_now}"
        reason = f"{churn}: {comparison.churn:.1%} (not limited, because the encoder changed {change})"
        return [*gates, Gate.judged("churn", comparison.churn, policy.churn, True, reason)]
    return [*gates, Gate.at_most("churn", comparison.churn, policy.churn, churn, "{:.1%}")]


def _named(ids: tuple[str, ...], shown: int = 5) -> str:
    more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return ", ".join(ids[:shown]) + more
