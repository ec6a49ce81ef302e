"""The tuning report: a table of what was tried, best first, and a plot of recall against time."""

from pathlib import Path

from tasks.index.tune import Tuned


def tuning_table(tuned: Tuned) -> str:
    """Markdown: every family with why it was or was not taken, and every trial with its verdict; the Pareto points are marked."""
    lines = [
        f"# {tuned.search['family']}: {tuned.memory_bytes / 2**20:.1f} MiB",
        "",
        f"{tuned.queries} held-out photos, {tuned.clients} at a time, {tuned.search.get('candidates', '')} candidates each.",
        "",
        "| parameters | recall@10 | true top 10 in candidates | p50 ms | p99 ms | QPS | Pareto | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for t in tuned.trials:
        params = ", ".join(f"{n} {v}" for n, v in t["params"].items()) or "none"
        figures = (
            f"{t['recall_at_10']:.3f} | {t['within_candidates']:.3f} | {t['p50_ms']:.2f} | {t['p99_ms']:.2f} | {t['qps']:.0f}"
        )
        lines.append(f"| {params} | {figures} | {'yes' if t['pareto'] else ''} | {t['verdict']} |")
    if tuned.families:
        lines += ["", "| family | why |", "|---|---|", *(f"| {name} | {why} |" for name, why in tuned.families.items())]
    return "\n".join(lines) + "\n"


def tuning_plot(tuned: Tuned, path: Path, target: float) -> None:
    """A PNG: recall@10 against p50 and p99 of every trial, the Pareto points joined, the chosen one ringed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for name, marker in (("p50_ms", "o"), ("p99_ms", "x")):
        axes.scatter([t[name] for t in tuned.trials], [t["recall_at_10"] for t in tuned.trials], marker=marker, label=name)
    front = sorted((t["p50_ms"], t["recall_at_10"]) for t in tuned.trials if t["pareto"])
    axes.plot([x for x, _ in front], [y for _, y in front], linewidth=1)
    axes.scatter([tuned.chosen["p50_ms"]], [tuned.chosen["recall_at_10"]], s=160, facecolors="none", edgecolors="black")
    axes.axhline(target, linewidth=1, linestyle=":")
    title = f"{tuned.search['family']}, {tuned.memory_bytes / 2**20:.1f} MiB, {tuned.clients} at a time"
    axes.set(xlabel="ms per query", ylabel="recall@10", xscale="log", title=title)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
