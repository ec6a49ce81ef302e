"""The monitoring report: JSON and drift plots."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from serving.contract.manifest import Gate
from tasks.watch.drift import Drift, Reference
from tasks.watch.live_metrics import LiveMetrics


def write_report(live: LiveMetrics, table: tuple[Gate, ...], folder: Path) -> list[Path]:
    """Writes look.json with figures and checks, and <name>_drift.png per measured drift."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"figures": asdict(live.figures), "checks": [gate.model_dump() for gate in table]}
    (folder / "look.json").write_text(json.dumps(content, indent=1))
    made = [folder / "look.json"]
    for name, (seen, base) in live.drifts.items():
        made.append(folder / f"{name}_drift.png")
        plot_drift(name, seen, base, made[-1])
    return made


def plot_drift(name: str, current: Drift, base: Reference, path: Path) -> None:
    """Scatter plot on the reference's two principal directions, and the occupancy of the reference's deciles along the first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    left.scatter(*base.projections.T, s=6, alpha=0.5, label=f"reference ({base.count})")
    left.scatter(*current.projections.T, s=6, alpha=0.5, label=f"now ({current.count})")
    left.set(xlabel="first main direction", ylabel="second main direction", title=f"{name} vectors")
    left.legend(markerscale=2)
    tenths = np.bincount(np.searchsorted(base.edges[0], current.projections[:, 0]), minlength=len(base.edges[0]) + 1)
    right.bar(range(1, len(tenths) + 1), tenths / max(tenths.sum(), 1))
    right.axhline(1 / len(tenths), color="black", linestyle="--", label="the reference")
    title = f"stability index {current.index:.3f} (chance {current.noise:.3f})"
    right.set(
        xlabel="tenths of the reference along the first direction",
        ylabel="share now",
        title=title,
        xticks=range(1, len(tenths) + 1),
    )
    right.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
