"""Index versions of a whole small shop in a real MLflow, registered as the pipeline does, and real replicas that serve them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from serving.app import create_app
from serving.contract.files import FileRef
from serving.contract.manifest import Gate, IndexManifest
from serving.contract.provenance import EmbeddingCommit
from serving.settings import ServingSettings
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.registry import ENCODER_MODEL, ENCODER_PATH, INDEX_MODEL, INDEX_PATH, Registry
from tasks.registry.binding import binding_tags, index_tags, signed
from tests.catalogs import small_catalog
from tests.releases import add_version
from tests.running import until
from tests.servers import free_port

TOKEN = "token-for-a-test"


def good_gates(recall: float = 0.93, p99_ms: float = 21.0) -> tuple[Gate, ...]:
    """Gates as the pipeline writes them; the p99 over 200 ms fails."""
    rows = [
        (
            "exact_recall",
            0.992,
            0.95,
            True,
            "Recall@10 of the index against exact search over the same vectors: 0.992 (at least 0.950 is required)",
        ),
        (
            "photo_recall",
            recall,
            0.9,
            recall >= 0.9,
            f"Recall@10 on 200 held-out photos: {recall} (at least 0.9 is required)",
        ),
        (
            "p99_ms",
            p99_ms,
            200.0,
            p99_ms <= 200,
            f"p99 of a photo search with 4 concurrent clients (200 searches/s): {p99_ms} ms (at most 200 ms is allowed)",
        ),
        ("reconciled", 0.0, 0.0, True, "Every one of the catalogue's 12 products is searchable (12) or in quarantine (0)"),
        ("servable", 12.0, 1.0, True, "Searchable products: 12 (at least 1 is required)"),
    ]
    return tuple(Gate(name=n, value=v, threshold=t, passed=p, reason=r) for n, v, t, p, r in rows)


class Shop:
    """A catalogue of a few products below `home`, whose versions are built here and registered at `registry`.

    They are bound to their manifests unless `bound` is False, and index versions signed with `key` where there is one.
    """

    def __init__(self, home: Path, registry: Registry, products: int = 12, words: bool = False) -> None:
        self.home, self.registry, self.words = home, registry, words
        self.bound = True
        self.key: Ed25519PrivateKey | None = None
        self.catalog = small_catalog(home / "shop", products)
        self.built = 0

    def snapshot(self, name: str) -> Snapshot:
        return take_snapshot(str(self.catalog), str(self.home / "data" / "snapshots"), name)

    def encoder(self, seed: int = 0, dim: int = 16) -> str:
        """Registers the tiny encoder of this seed as an encoder version; gives its number."""
        from tests.tiny import tiny_encoder

        folder = self.home / "tiny" / f"{seed}-{dim}"
        tiny_encoder(folder, dim, seed=seed, words=self.words)
        with self.registry.run("encoders", f"{self.home}-tiny-{seed}-{dim}", "tiny") as run:
            run.artifacts(folder, ENCODER_PATH)
            tags = {"preset": "tiny", "verdict": "passed"}
            tags |= binding_tags((folder / "encoder.json").read_bytes()) if self.bound else {}
            return self.registry.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, tags, "tiny").version

    def evaluate(self, version: str, *gates: dict[str, Any]) -> None:
        """Records an evaluation of an encoder version as train_encoder does."""
        self.built += 1
        path = self.home / "evaluations" / str(self.built) / "gates.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(gates))
        tags = {"encoder_run": self.registry.version(ENCODER_MODEL, version).run_id}
        with self.registry.run("encoders", f"{self.home}-judge-{self.built}", f"judge version {version}", tags) as run:
            run.artifact(path, "report")

    def version(
        self, gates: tuple[Gate, ...] | None = None, seed: int = 0, snapshot: Snapshot | None = None,
        embeddings: tuple[EmbeddingCommit, ...] = (),
    ) -> str:  # fmt: skip
        """Builds, uploads and registers one index version with these gates; gives its number."""
        self.built += 1
        name, gates = f"made-{self.built}", good_gates() if gates is None else gates
        taken = snapshot or self.snapshot(name)
        encoder = self.registry.encoder_ref(self.encoder(seed))
        built = add_version(self.home, taken, name, seed, self.words)
        with self.registry.run("indexes", f"{self.home}-{name}", f"index {taken.id}") as run:
            manifest = self._upload(built, run.run_id).model_copy(update={"encoder": encoder, "gates": gates})
            manifest = manifest.model_copy(update={"embeddings": embeddings})
            path = self.home / "work" / name / "manifest.json"
            manifest = signed(manifest, self.key)
            path.write_text(manifest.to_json(), "utf-8")
            self.registry.client.log_artifact(run.run_id, str(path), INDEX_PATH)
            run.metrics({g.name: g.value for g in gates})
            tags = {
                "encoder_version": encoder.version, "snapshot": taken.id, "products": str(manifest.counts.servable),
                "verdict": "passed" if all(g.passed for g in gates) else "failed", "run_key": name,
            } | (index_tags(manifest) if self.bound else {})  # fmt: skip
            text = f"{manifest.counts.servable} products of a test's shop"
            return self.registry.register(INDEX_MODEL, run.run_id, INDEX_PATH, tags, text).version

    def _upload(self, manifest: IndexManifest, run_id: str) -> IndexManifest:
        """The manifest with its files as artifacts of a run."""

        def moved(ref: FileRef) -> FileRef:
            source = self.home / "release" / "files" / ref.sha256
            self.registry.client.log_artifact(run_id, str(source), INDEX_PATH)
            return ref.model_copy(update={"run_id": run_id, "path": f"{INDEX_PATH}/{ref.sha256}"})

        segments = tuple(
            s.model_copy(update={"table": moved(s.table), "index": moved(s.index) if s.index else None})
            for s in manifest.segments
        )
        return manifest.model_copy(update={"segments": segments, "golden": moved(manifest.golden)})

    def point(self, **aliases: str) -> None:
        for alias, version in aliases.items():
            self.registry.set_alias(INDEX_MODEL, alias, version)


class Running:
    """A real replica in this process, on a loopback port; `stop` takes it away as a crash would: the port is closed."""

    def __init__(self, mlflow_uri: str, cache: Path, port: int = 0, **settings: Any) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given: dict[str, Any] = {"poll_s": 0.2, "admin_token": TOKEN, "deadline_s": 60.0} | settings
        app = create_app(ServingSettings(mlflow_uri=mlflow_uri, cache=cache, **given))
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="warning", ws="none", timeout_keep_alive=75)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        until(lambda: self.server.started, "the replica listens")

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)


@contextmanager
def replicas(mlflow_uri: str, home: Path, count: int, **settings: Any) -> Iterator[list[Running]]:
    """Real replicas that follow the aliases at `mlflow_uri`."""
    started = [Running(mlflow_uri, home / f"replica-{n}", **settings) for n in range(count)]
    try:
        yield started
    finally:
        for one in started:
            one.stop()
