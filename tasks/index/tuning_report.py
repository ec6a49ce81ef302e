"""The tuning report: a table of all trials, and a plot of recall against latency and throughput."""

from pathlib import Path
from typing import Any

from tasks.index.tune import FIRST_PART, TuningResult

PANELS = (("p50_ms", "p50, ms"), ("p99_ms", "p99, ms"), ("qps", "queries a second"))
HEADER = (
    "parameters", "queries", "recall@10", "true top 10 in candidates", "p50 ms", "p99 ms", "QPS", "searched again", "work us",
    "Pareto", "verdict",
)  # fmt: skip


def tuning_table(tuned: TuningResult) -> str:
    """Markdown: each family with the reason for or against it, and each trial with its verdict, Pareto points marked."""
    lines = [
        f"# {tuned.search['family']}: {tuned.memory_bytes / 2**20:.1f} MiB",
        "",
        f"{queries_of(tuned)}, {tuned.clients} at a time, {tuned.search.get('candidates', '')} candidates each. "
        f"Where the first {FIRST_PART} had a recall far below the target, no more were asked.",
        *(["", f"Refused: {tuned.refused}"] if tuned.refused else []),
        "",
        f"| {' | '.join(HEADER)} |",
        "|---" * len(HEADER) + "|",
    ]
    for t in tuned.trials:
        params = ", ".join(f"{n} {v}" for n, v in t["params"].items()) or "none"
        figures = (
            f"{t['queries']} | {t['recall_at_10']:.3f} | {t['within_candidates']:.3f} | {t['p50_ms']:.2f} | {t['p99_ms']:.2f} | "
            f"{t['qps']:.0f} | {t['again']:.2f} | {t['work_us']:.0f}"
        )
        lines.append(f"| {params} | {figures} | {'yes' if t['pareto'] else ''} | {t['verdict']} |")
    if tuned.families:
        lines += ["", "| family | why |", "|---|---|", *(f"| {name} | {why} |" for name, why in tuned.families.items())]
    return "\n".join(lines) + "\n"


def queries_of(tuned: TuningResult) -> str:
    """What was asked, in words; results of before were tuned on photos alone."""
    return tuned.asked or f"{tuned.queries} held-out photos"


def tuning_plot(tuned: TuningResult, path: Path, target: float) -> None:
    """A PNG of recall@10 against p50, p99 and queries per second, with Pareto fronts and the chosen point.

    A trial that only the first queries were asked is hollow.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(PANELS), figsize=(14, 5), sharey=True)
    whole, part = ([t for t in tuned.trials if (_asked(t, tuned) == tuned.queries) is full] for full in (True, False))
    for axes, (name, label) in zip(panels, PANELS, strict=True):
        axes.scatter([t[name] for t in whole], [t["recall_at_10"] for t in whole], label="all queries")
        if part:
            axes.scatter(
                [t[name] for t in part], [t["recall_at_10"] for t in part], facecolors="none", edgecolors="grey",
                label=f"the first {_asked(part[0], tuned)} queries",
            )  # fmt: skip
        axes.plot(*zip(*front(whole, name), strict=True), linewidth=1)
        axes.scatter([tuned.chosen[name]], [tuned.chosen["recall_at_10"]], s=160, facecolors="none", edgecolors="black")
        axes.axhline(target, linewidth=1, linestyle=":")
        axes.set(xlabel=label, xscale="log")
    panels[0].set(ylabel="recall@10")
    panels[0].legend()
    verdict = ", refused" if tuned.refused else ""
    figure.suptitle(f"{tuned.search['family']}, {tuned.memory_bytes / 2**20:.1f} MiB, {tuned.clients} at a time{verdict}")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def front(trials: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """The Pareto front (value, recall@10) of the trials, best value first: least time, or most queries per second."""
    sign = -1 if name == "qps" else 1
    points: list[tuple[float, float]] = []
    for value, recall in sorted(((t[name], t["recall_at_10"]) for t in trials), key=lambda p: (sign * p[0], -p[1])):
        if not points or recall > points[-1][1]:
            points.append((value, recall))
    return points


def _asked(trial: dict[str, Any], tuned: TuningResult) -> int:
    """Number of photos of a trial; older reports lack it."""
    return int(trial.get("queries", tuned.queries))
