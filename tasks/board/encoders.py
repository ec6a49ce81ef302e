"""Encoder versions for the board: their gates with what was measured, as the last evaluation recorded them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks.board.timeline import GateLine, links
from tasks.registry import Registry, Version

EXPERIMENT, EVALUATED, GATES = "encoders", "encoder_run", "report/gates.json"
"""Where train_encoder's evaluation is recorded (tasks/pipelines/train_encoder.py), and the tag that names the version's run."""
RECENT = 200
"""As many runs are looked through for the evaluations of the shown versions."""


def encoder_entries(versions: Sequence[Version], registry: Registry) -> list[dict[str, Any]]:
    """One entry per version, with the gates of its newest evaluation ([] while it has none)."""
    evaluations = registry.newest_runs(EXPERIMENT, EVALUATED, RECENT)
    return [_entry(version, registry, evaluations.get(version.run_id, "")) for version in versions]


def _entry(version: Version, registry: Registry, evaluation: str) -> dict[str, Any]:
    gates = read_gates(registry, evaluation) if evaluation else []
    addresses = links(version, registry) | ({"Evaluation": registry.artifact_url(evaluation, "report")} if gates else {})
    return {
        "version": version.version, "aliases": version.aliases, "created_ms": version.created_ms,
        "verdict": version.tags.get("verdict", ""), "preset": version.tags.get("preset", ""),
        "description": version.summary, "gates": [asdict(gate) for gate in gates], "links": addresses,
    }  # fmt: skip


def read_gates(registry: Registry, run_id: str) -> list[GateLine]:
    """The gates that an evaluation recorded; [] while it is under way, or where its files are no longer kept. Cached on disk."""
    folder = registry.cache / "evaluations" / run_id
    path = folder / Path(GATES).name
    try:
        if not path.is_file():
            path = registry.fetch(run_id, GATES, folder)
        return [GateLine(g["name"], g["value"], g["threshold"], g["passed"], g["reason"]) for g in json.loads(path.read_text())]
    except Exception:  # the artifact store may be away or have lost it: the verdict in the registry is shown all the same
        return []
