"""A replica against other servers of vectors over the same vectors: milvus-lite, and the back end of clip-retrieval.

    python -m tests.benchmarks.bench_servers [--rows 200000] [--family ivf_fs_sq8] [--recall 0.95] [--seconds 5] [--rounds 2]
        [--out build/bench]

Each other server runs in an environment of its own below build/peers/<name>, made beforehand by whoever wants it there:
`uv venv build/peers/milvus && VIRTUAL_ENV=build/peers/milvus uv pip install 'pymilvus[milvus_lite]'`, and likewise `clip-retrieval
'faiss-cpu<1.9' 'setuptools<81'` (autofaiss does not know newer FAISS); one that is not there is said to be missing. Every server is
asked for 20 by one vector at a time, by 1 and by 8 clients, in turns with the others; ours also ranks 500 candidates and answers
with titles and prices. Recall is that of the nearest ten among what is retrieved. Writes servers.json.
"""

import argparse
import http.client
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import psutil

from serving.index.searcher import Searcher
from tests.benchmarks.bench_serving import best, measure, replica, requests_of
from tests.benchmarks.market import BLOCK, DIM, RECALL, Market, market
from tests.benchmarks.peer_servers import Ask, loop
from tests.benchmarks.vectors import Vectors
from tests.servers import free_port

PEERS = Path("build/peers")
SCRIPT = Path(__file__).with_name("peer_servers.py")
CLIENTS = (1, 8)
EFS = (64, 128, 256)
START_S = 1800


def world(made: Market, rows: int, folder: Path) -> np.ndarray:
    """Writes xb.npy, xq.npy and gt.npy (the nearest ten); gives the last."""
    vectors = Vectors(DIM, "hard")
    xb = np.concatenate([vectors.base(min(BLOCK, rows - start)) for start in range(0, rows, BLOCK)])
    truth = faiss.knn(made.queries, xb, 10, metric=faiss.METRIC_INNER_PRODUCT)[1]
    for name, array in {"xb": xb, "xq": made.queries, "gt": truth}.items():
        np.save(folder / f"{name}.npy", array)
    return truth


def our_recall(made: Market, truth: np.ndarray) -> float:
    """Recall@10 of what the replica retrieves. Rows of the one shard are in the order in which the vectors were made."""
    manifest = made.manifest()
    searcher = Searcher.open(manifest, lambda ref: made.release / "files" / ref.sha256)
    found = searcher.search(made.queries, int(manifest.search["candidates"] or 500)).rows[:, :10]
    return float(np.mean([len(set(f) & set(t)) / 10 for f, t in zip(found.tolist(), truth.tolist(), strict=True)]))


class Milvus:
    """milvus-lite, asked by its own client in its own process."""

    def __init__(self, folder: Path, log: Path) -> None:
        command = [str(PEERS / "milvus" / "bin" / "python"), str(SCRIPT), "milvus", str(folder)]
        with log.open("w") as stream:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True)
        line = self._line()
        while "READY" not in line:
            line = self._line()
        print(f"milvus-lite: HNSW built, {line}")

    def ask(self, clients: int, seconds: float, ef: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"clients": clients, "seconds": seconds, "ef": ef}) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("milvus-lite ended; its log tells why")
        return line.strip()


class ClipBack:
    """clip-retrieval's back end over HTTP, asked by threads of this process."""

    def __init__(self, folder: Path, log: Path, queries: np.ndarray, truth: np.ndarray) -> None:
        self.port, self.queries, self.truth = free_port(), queries, truth
        command = [str(PEERS / "clip-retrieval" / "bin" / "python"), str(SCRIPT), "clip-retrieval", str(folder), str(self.port)]
        with log.open("w") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream, text=True)

    def wait(self) -> None:
        until = time.monotonic() + START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("clip-retrieval did not start; its log tells why")
            time.sleep(1)

    def _answers(self) -> bool:
        try:
            self._one(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30), 0)
        except OSError:
            return False
        return True

    def _one(self, connection: http.client.HTTPConnection, n: int) -> list[int]:
        body = {"embedding_input": self.queries[n].tolist(), "modality": "image", "num_images": 20, "indice_name": "products"}
        connection.request("POST", "/knn-service", json.dumps(body), {"content-type": "application/json"})
        return [row["id"] for row in json.loads(connection.getresponse().read())]

    def ask(self, clients: int, seconds: float) -> dict[str, Any]:
        def client() -> Ask:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            return lambda n: self._one(connection, n)

        return loop(client, self.truth, clients, seconds)


@contextmanager
def ended(process: subprocess.Popen) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def installed(name: str) -> bool:
    there = (PEERS / name / "bin" / "python").exists()
    if not there:
        print(f"{name}: not installed ({PEERS / name})")
    return there


def run(made: Market, args: argparse.Namespace, folder: Path, url: str, process: psutil.Process) -> list[dict[str, Any]]:
    truth = world(made, args.rows, folder)
    ours, asked = our_recall(made, truth), requests_of(made, "vector")
    rounds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        milvus = clip = None
        if installed("milvus"):
            milvus = Milvus(folder, args.out / "milvus.log")
            stack.enter_context(ended(milvus.process))
        if installed("clip-retrieval"):
            clip = ClipBack(folder, args.out / "clip-back.log", made.queries, truth)
            stack.enter_context(ended(clip.process))
            clip.wait()
        for _ in range(args.rounds):
            for clients in CLIENTS:
                mine = measure([(url, process)], asked, clients, args.seconds) | {"recall_at_10": ours}
                rounds.setdefault(("Vitrine", clients), []).append(mine)
                for ef in EFS if milvus else ():
                    row = milvus.ask(clients, args.seconds, ef) if milvus else {}
                    rounds.setdefault((f"milvus-lite HNSW ef={ef}", clients), []).append(row)
                if clip:
                    rounds.setdefault(("clip-retrieval back", clients), []).append(clip.ask(clients, args.seconds))
    return [{"server": name, "clients": clients} | best(rows) for (name, clients), rows in rounds.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--family", default="ivf_fs_sq8", help="of our index")
    parser.add_argument("--recall", type=float, default=RECALL, help="recall@10 that ours is tuned to")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = market(args.out, args.rows, args.family, recall=args.recall)
    with TemporaryDirectory() as name, replica(made.release, args.out / "serving.log") as (url, process):
        rows = run(made, args, Path(name), url, process)
    print(f"\n{args.rows} x {DIM}, HARD, ours {args.family}; load {psutil.getloadavg()[0]:.1f}")
    print(f"{'server':26} {'clients':>7} {'recall@10':>9} {'QPS':>8} {'p50 ms':>8} {'p99 ms':>8} {'ours x QPS':>10}")
    for row in rows:
        mine = next(r for r in rows if r["server"] == "Vitrine" and r["clients"] == row["clients"])
        figures = (
            f"{row['recall_at_10']:9.3f} {row['qps']:8.1f} {row['p50']:8.2f} {row['p99']:8.2f} {mine['qps'] / row['qps']:10.2f}"
        )
        print(f"{row['server']:26} {row['clients']:7} {figures}")
    (args.out / "servers.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
