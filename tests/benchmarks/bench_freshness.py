"""From a change that was sent to a product that can be found: the hourly path's work, and the stream's delay.

    python -m tests.benchmarks.bench_freshness [--products 100000] [--changes 100 1000] [--seconds 150] [--every 30]

Over a real MLflow server, an outbox in SQLite and, for the stream, `vitrine stream` and a replica, each in a process of its own. The
encoder is the tests' tiny one (an 8 x 8 average and one projection to 64 dimensions), so embedding weighs next to nothing here: what
is measured is everything around it. The base's vectors are made up, except those of the products with photos. Prints a table and
writes freshness.json.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from serving.contract.encoder import EncoderFolder
from serving.contract.keys import product_keys
from serving.contract.manifest import IndexManifest
from serving.contract.palette import PALETTE, PALETTE_TYPE
from serving.contract.preprocess import decode
from serving.index.searcher import Searcher
from tasks.catalog.changes.event import Event, delete, upsert
from tasks.catalog.changes.source import open_changes
from tasks.catalog.snapshot import take_snapshot
from tasks.demo.services import mlflow_service, process_environment, serving_service
from tasks.demo.supervisor import Supervisor
from tasks.embed.job import EmbedResult
from tasks.embed.store import SHA_TYPE, EmbeddingStore
from tasks.index.build import build_shard
from tasks.index.choice import IndexConfig
from tasks.index.template import train_template
from tasks.index.version_manifest import base_segment, draft_manifest, with_golden
from tasks.registry import ENCODER_MODEL, ENCODER_PATH, INDEX_MODEL, INDEX_PATH, Registry
from tasks.settings import PROJECT, Settings
from tests.catalogs import picture
from tests.index.shop import write_vectors
from tests.registered import good_gates
from tests.servers import free_port
from tests.tiny import tiny_encoder

DIM, SHARDS, PHOTOS, PART = 64, 2, 200, 2048
EVERY_S = 0.5
"""Between two changes that are sent, and two looks at what the replica serves: delays are too long by up to this."""


class Bench:
    """A shop of many products with a live version, and the services around it."""

    def __init__(self, home: Path, products: int) -> None:
        self.home, self.products = home, products
        urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        self.settings = replace(
            Settings(), home=home, catalog=str(home / "shop"), mlflow_uri=urls[0], serving_urls=(urls[1],), admin_token="bench",
            shards=SHARDS, bake_s=0.0, p99_ms=60_000.0, recall_target=0.5,
        )  # fmt: skip
        os.environ.update(process_environment(self.settings) | {"VITRINE_P99_MS": "60000", "VITRINE_BAKE_S": "0"})
        self.supervisor = Supervisor(home)
        self.services = [mlflow_service(self.settings), serving_service(self.settings)]
        self.pictures = 0
        self.sent: dict[str, float] = {}

    def start(self) -> None:
        for service in self.services:
            self.supervisor.start(service)
        for service in self.services:
            self.supervisor.wait(service)
        self.registry = Registry(self.settings.mlflow_uri, self.home / "cache")

    def stop(self) -> None:
        for service in reversed(self.services):
            self.supervisor.stop(service.name)

    def base(self) -> None:
        """The live version: its catalogue, its vectors, its shards, registered as a build does."""
        shop = self.home / "shop"
        rows = ["product_id,title,image,brand,category,price,currency,updated_at"]
        for n in range(self.products):
            rows.append(f"p{n:06d},Product {n},images/{n}.jpg,Brand {n % 500},kind {n % 20},{n % 90}.5,EUR,2026-11-01 00:00:00")
        shop.mkdir(parents=True)
        (shop / "products.csv").write_text("\n".join(rows) + "\n")
        for n in range(PHOTOS):
            picture(shop / f"images/{n}.jpg", n)
        shown = [f"images/{n}.jpg,p{n:06d},val" for n in range(PHOTOS)]
        (shop / "photos.csv").write_text("\n".join(["photo,product_id,split", *shown]) + "\n")
        encoder, reference = self._encoder()
        snapshot = take_snapshot(str(shop), str(self.home / "data" / "snapshots"), "base")
        x = np.random.default_rng(1).standard_normal((self.products, DIM)).astype(np.float32)
        pixels = [decode((shop / f"images/{n}.jpg").read_bytes(), encoder.manifest.preprocess) for n in range(PHOTOS)]
        x[:PHOTOS] = encoder.open("student.fp32").encode(np.stack(pixels))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        keys, work = product_keys(f"p{n:06d}" for n in range(self.products)), self.home / "work" / "base"
        write_vectors(work / "vectors", keys, x, SHARDS)
        self._store(encoder, reference.version, x)
        template = train_template(str(work / "vectors"), IndexConfig(shards=SHARDS, family="flat"), work)
        built = [build_shard(str(work / "vectors"), snapshot.uri, template, s, work / str(s)) for s in range(SHARDS)]
        with self.registry.run("indexes", "base", "base") as run:
            segments = [base_segment(b, run.run_id, INDEX_PATH) for b in built]
            manifest = draft_manifest(
                name="base", created_at=datetime.now(UTC).isoformat(), encoder=reference, snapshot=snapshot, segments=segments,
                search={"family": template.family, "candidates": 500}, ranker={},
                embedded=EmbedResult.all_embedded("base", self.products), shards=SHARDS, key="base",
            )  # fmt: skip
            files = {p.name: p for s in range(SHARDS) for p in (work / str(s)).iterdir()}
            searcher = Searcher.open(manifest, lambda ref: files[Path(ref.path).name])
            manifest = with_golden(manifest, searcher, x[:PHOTOS], work, run.run_id, INDEX_PATH)
            manifest = manifest.model_copy(update={"gates": good_gates()})
            self._publish(run, manifest, files | {"golden.npz": work / "golden.npz"}, work)
            tags = {"snapshot": "base", "verdict": "passed", "run_key": "base", "encoder_version": reference.version}
            version = self.registry.register(INDEX_MODEL, run.run_id, INDEX_PATH, tags, "base").version
        for alias in ("blue", "live", "candidate"):
            self.registry.set_alias(INDEX_MODEL, alias, version)

    def _encoder(self) -> tuple[EncoderFolder, Any]:
        folder = self.home / "tiny"
        tiny_encoder(folder, dim=DIM)
        with self.registry.run("encoders", "tiny", "tiny") as run:
            run.artifacts(folder, ENCODER_PATH)
            version = self.registry.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, {}, "tiny").version
        self.registry.set_alias(ENCODER_MODEL, "champion", version)
        return EncoderFolder(folder), self.registry.encoder_ref(version)

    def _store(self, encoder: EncoderFolder, version: str, x: np.ndarray) -> None:
        """The embedding store as it is after so many pictures: the hourly path reads what it must of it."""
        print_ = encoder.manifest.variant(encoder.manifest.document).fingerprint
        uri = str(self.home / "data" / "embeddings" / encoder.manifest.name / f"v{version}-{print_[:12]}")
        store = EmbeddingStore(uri, DIM)
        for start in range(PHOTOS, len(x), PART):
            part = x[start : start + PART].astype(np.float16)
            names = [hashlib.sha256(f"made up {start + n}".encode()).digest() for n in range(len(part))]
            table = pa.table({
                "image_sha256": pa.array(names, SHA_TYPE), "vector": pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), DIM),
                PALETTE: pa.array([bytes(PALETTE_TYPE.byte_width)] * len(part), PALETTE_TYPE),
                "width": pa.array([48] * len(part), pa.int32()), "height": pa.array([48] * len(part), pa.int32()),
                "embedded_at": pa.array([datetime.now(UTC)] * len(part), pa.timestamp("us", tz="UTC")),
            })  # fmt: skip
            store.write(table, [], "base")

    def _publish(self, run: Any, manifest: IndexManifest, files: dict[str, Path], work: Path) -> None:
        for ref in manifest.files():
            run.artifact(files[Path(ref.path).name], INDEX_PATH)
        (work / "manifest.json").write_text(manifest.model_dump_json())
        run.artifact(work / "manifest.json", INDEX_PATH)

    def changes(self, count: int, first: int) -> list[Event]:
        """Of ten changes: 5 new prices, 4 new pictures, 1 delete. A new price keeps a picture that was embedded before."""
        now, events = datetime.now(UTC), []
        for n in range(count):
            product = f"p{PHOTOS + first + n:06d}"
            row = {"title": f"Product, changed {first + n}", "currency": "EUR", "price": float(n % 77), "category": "kind 1"}
            if (first + n) % 10 == 9:
                events.append(delete(product, now))
            elif (first + n) % 10 < 5:
                events.append(upsert(product, now, row | {"image": f"images/{n % PHOTOS}.jpg"}))
            else:
                self.pictures += 1
                picture(self.home / "shop" / f"images/new-{self.pictures}.jpg", 1_000_000 + self.pictures)
                events.append(upsert(product, now, row | {"image": f"images/new-{self.pictures}.jpg"}))
        return events

    def send(self, events: list[Event]) -> None:
        with open_changes("outbox:", self.settings.catalog, self.home) as source:
            source.send(events)
        for event in events:
            self.sent[event.digest] = time.time()


def hourly(bench: Bench, count: int, first: int) -> dict[str, Any]:
    """The steps of refresh_index over `count` changes: seconds of each."""
    from tasks.pipelines import drain_changes, refresh_index

    bench.send(bench.changes(count, first))
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - began
        return result

    key = f"hourly-{count}-{first}"
    plan = timed("drain", lambda: drain_changes.drain(key))
    embedded = timed("embed", lambda: refresh_index.embed(plan))
    registered = timed("register", lambda: refresh_index.register(plan, embedded))
    timed("acknowledge", lambda: refresh_index.acknowledge(plan, registered, embedded))
    timed("publish", lambda: refresh_index.publish(registered))
    manifest = bench.registry.index_manifest(registered.version)
    run = bench.registry.version(INDEX_MODEL, registered.version).run_id
    written = sum(f.bytes for f in (*manifest.files(), *manifest.changes) if f.run_id == run)
    return {
        "changes": plan.changes,
        "new_pictures": embedded.result.embedded_now if embedded.result else 0,
        "total_s": sum(seconds.values()),
        "bytes": written,
    } | {f"{name}_s": value for name, value in seconds.items()}


def streamed(bench: Bench, seconds: float, every: float, first: int) -> dict[str, Any]:
    """Changes sent one by one for so long, and from each the seconds until the replica serves a version that holds it."""
    log = (bench.home / "stream.log").open("wb")
    command = [sys.executable, "-W", "ignore", "-m", "tasks.cli", "stream", "--seconds", str(every)]
    process = subprocess.Popen(command, env=os.environ, cwd=PROJECT, stdout=log, stderr=log)
    seen: dict[str, float] = {}

    def look() -> None:
        state = httpx.get(f"{bench.settings.serving_urls[0]}/v1/version", timeout=10, trust_env=False).json()
        seen.setdefault(state["live"]["version"], time.time())

    sent: set[str] = set()
    held: dict[str, set[str]] = {}
    began, until = time.time(), time.time() + seconds + 240
    try:
        while time.time() - began < seconds:
            events = bench.changes(1, first + len(sent))
            bench.send(events)
            sent |= {e.digest for e in events}
            look()
            time.sleep(EVERY_S)
        while not sent <= set().union(*held.values()) and time.time() < until:
            look()
            held |= {v: _held(bench.registry, v) for v in seen if v not in held}
            time.sleep(EVERY_S)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        log.close()
    delays: dict[str, float] = {}
    for version, at in sorted(seen.items(), key=lambda item: item[1]):
        for digest in held.get(version, set()) & sent - set(delays):
            delays[digest] = at - bench.sent[digest]
    found = np.array(list(delays.values()))
    print((bench.home / "stream.log").read_text())
    return {
        "sent": len(sent), "served": len(delays), "versions": len(seen) - 1, "every_s": every,
        **{f"p{q}_s": float(np.percentile(found, q)) for q in (50, 90, 99, 100)},
    }  # fmt: skip


def _held(registry: Registry, version: str) -> set[str]:
    """The digests of the changes that a version holds."""
    from tasks.pipelines.drain_changes import ledger_of

    return set(ledger_of(registry, registry.index_manifest(version))["digest"].to_pylist())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--changes", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--every", type=float, default=30)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    with TemporaryDirectory(prefix="bench-freshness-") as folder:
        bench = Bench(Path(folder), args.products)
        try:
            bench.start()
            bench.base()
            first = 0
            print("changes  new pictures  drain  embed  register  acknowledge  publish  total s   MiB written")
            rows = []
            for count in [50, *args.changes]:  # the first is for caches, and not counted
                row = hourly(bench, count, first)
                first += count
                if count != 50:
                    rows.append(row)
                    parts = "  ".join(f"{row[f'{n}_s']:6.2f}" for n in ("drain", "embed", "register", "acknowledge", "publish"))
                    print(
                        f"{row['changes']:7d}  {row['new_pictures']:12d}  {parts}  {row['total_s']:8.2f}  {row['bytes'] / 2**20:8.2f}"
                    )
            stream = streamed(bench, args.seconds, args.every, first) if args.seconds else {}
            if stream:
                print(
                    f"stream, a version every {args.every:g} s: {stream['served']} of {stream['sent']} changes served in "
                    f"{stream['versions']} versions; send to servable p50 {stream['p50_s']:.1f} s, p90 {stream['p90_s']:.1f} s, "
                    f"p99 {stream['p99_s']:.1f} s, longest {stream['p100_s']:.1f} s"
                )
        finally:
            bench.stop()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "freshness.json").write_text(json.dumps({"products": args.products, "hourly": rows, "stream": stream}, indent=1))


if __name__ == "__main__":
    main()
