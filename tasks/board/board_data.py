"""Reads registry and replicas and assembles the board's data."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from typing import Any

from serving.contract.addresses import error_line, without_secrets
from serving.contract.files import ContractError
from serving.contract.manifest import SLOTS
from tasks.board.embedding import embedding_entry
from tasks.board.encoders import encoder_entries
from tasks.board.lineage import lineage
from tasks.board.replicas import fetch_states, replica_lines
from tasks.board.timeline import LoadedVersion, series, timeline
from tasks.errors import VitrineError
from tasks.queries.query_words import VIEW_DEPTH
from tasks.registry import ENCODER_MODEL, INDEX_MODEL, Registry, Version
from tasks.release.promotion.serving_replicas import Replica

SHOWN, ENCODERS = 60, 6
FETCHES = 8
CHARTS = (
    ("photo_recall", "Recall@10, photo to answer", "share"),
    ("exact_recall", "Recall@10 against exact search", "share"),
    ("p99_ms", "p99 of one photo, bytes to answer", "ms"),
)


class Board:
    """One registry and the replicas. Manifests are cached, as versions are immutable. Thread-safe."""

    def __init__(self, open_registry: Callable[[], Registry], replicas: Callable[[], Sequence[Replica]]) -> None:
        self.open_registry, self.replicas = open_registry, replicas
        self.held: Registry | None = None
        self.lock = threading.Lock()

    @property
    def registry(self) -> Registry:
        with self.lock:
            if self.held is None:
                self.held = self.open_registry()
            return self.held

    def read(self, now: datetime) -> dict[str, Any]:
        """All data of the page as JSON. Raises VitrineError when the registry does not respond."""
        registry = self.registry
        with ThreadPoolExecutor(FETCHES) as pool:
            told = pool.submit(lambda: fetch_states(self.replicas()))
            try:
                versions = registry.versions(INDEX_MODEL, SHOWN)
                encoders = encoder_entries(registry.versions(ENCODER_MODEL, ENCODERS), registry)
                embedding = embedding_entry(registry)
                aliases = registry.aliases(INDEX_MODEL)
                champion = registry.aliases(ENCODER_MODEL).get("champion", "")
            except Exception as error:  # MLflow raises many unrelated classes when its server is away
                raise VitrineError(f"MLflow at {without_secrets(registry.uri)} does not answer: {error_line(error)}") from None
            made = list(pool.map(self._made, versions))
        live = aliases.get("live", "")
        entries = timeline(made, registry)
        shown = next((m for m in made if m.version.version == live), None)
        return {
            "read_at": now.isoformat(timespec="seconds"),
            "live": live,
            "previous": aliases.get("previous", ""),
            "candidate": aliases.get("candidate", ""),
            "slots": {slot: aliases.get(slot, "") for slot in SLOTS},
            "champion": champion,
            "replicas": [asdict(line) for line in replica_lines(told.result(), live)],
            "versions": [asdict(entry) for entry in entries],
            "encoders": encoders,
            "embedding": embedding,
            "charts": [
                {"gate": gate, "title": chart_title(gate, title, made), "unit": unit, "points": points}
                for gate, title, unit in CHARTS
                if (points := series(entries, gate))
            ],
            "lineage": [asdict(x) for x in lineage(shown.version, shown.manifest, registry)] if shown and shown.manifest else [],
        }  # fmt: skip

    def lineage(self, version: str) -> list[dict[str, str]]:
        """The lineage of one version. Raises VitrineError or ContractError when it is missing or damaged."""
        found = self.registry.version(INDEX_MODEL, version)
        return [asdict(link) for link in lineage(found, self.registry.index_manifest(version), self.registry)]

    def _made(self, version: Version) -> LoadedVersion:
        try:
            return LoadedVersion(version, self.registry.manifest_of(version))
        except ContractError as error:
            return LoadedVersion(version, None, str(error))
        except Exception as error:  # the artifact store may have lost it; the board says so and shows the others
            return LoadedVersion(version, None, f"its manifest cannot be fetched: {error_line(error)}")


def chart_title(gate: str, title: str, made: Sequence[LoadedVersion]) -> str:
    """The title, which says where some of the recall was measured on synthetic queries."""
    synthetic = any(m.manifest and m.manifest.queries and m.manifest.queries.synthetic for m in made)
    return f"{title}; synthetic queries: Recall@{VIEW_DEPTH}" if synthetic and gate == "photo_recall" else title
