"""Photos encoded in process and by servers, side by side: latency and throughput at 1, 8 and 32 clients, of one picture a call.

make bench-encoder-servers ARGS="[--model efficientnet_lite0] [--clients 1 8 32] [--seconds 5] [--rounds 3]"

Servers run on this machine beside their clients, with as many instances of the model as there are cores, one thread each; in process
as many callers compute at a time as there are cores, as in a replica. All take turns within each round; the quickest round counts.
Weights are random.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from serving.contract.encoder import Encoder, EncoderFolder
from serving.contract.files import describe
from serving.contract.manifest import EncoderManifest, Variant, fingerprint
from serving.contract.preprocess import PreprocessSpec
from serving.contract.runtimes import ONNXRUNTIME
from serving.versions.encoder_server import EncoderServer
from tasks.encoder.export.onnx_graph import ImageGraph, write_onnx
from tasks.encoder.servers.model import Batching
from tests.benchmarks.bench_encoder import image_encoder
from tests.encoder_servers.servers import ModelServer, TorchServe, TritonServer

CORES = os.cpu_count() or 1
NAME = "student.fp32"
Call = Callable[[np.ndarray], np.ndarray]
SERVERS: dict[str, Callable[[Path, Batching], ModelServer]] = {
    "triton, gRPC": lambda folder, batching: TritonServer(folder, "grpc", batching),
    "triton, HTTP": lambda folder, batching: TritonServer(folder, "http", batching),
    "torchserve": TorchServe,
}


@dataclass(frozen=True)
class Measured:
    """One way to encode at so many clients. Times in ms."""

    encoder: str
    clients: int
    p50_ms: float
    p99_ms: float
    qps: float


def version(folder: Path, model: str) -> EncoderFolder:
    """An encoder version of one image tower with random weights."""
    network, size = image_encoder(model)
    folder.mkdir(parents=True)
    graph, spec = folder / f"{NAME}.onnx", PreprocessSpec(size=size)
    write_onnx(ImageGraph(network), torch.zeros((2, size, size, 3), dtype=torch.uint8), graph)
    pixels = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    vectors = ONNXRUNTIME.open(graph, "fp32", 1)(pixels)
    np.savez(folder / "golden.npz", **{"pixels": pixels, NAME: vectors})
    file = describe(graph, graph.name)
    manifest = EncoderManifest(
        name=model, dim=vectors.shape[1], preprocess=spec, document=NAME, query=NAME,
        towers={"student": {"fp32": Variant(file=file, fingerprint=fingerprint(file.sha256, spec))}},
        golden=describe(folder / "golden.npz", "golden.npz"),
    )  # fmt: skip
    (folder / "encoder.json").write_text(manifest.to_json())
    return EncoderFolder(folder)


def in_process(encoder: Encoder) -> Call:
    """Encodes with as many callers at work as there are cores; the others wait, as in a replica."""
    workers = threading.Semaphore(CORES)

    def call(pixels: np.ndarray) -> np.ndarray:
        with workers:
            return encoder.encode(pixels)

    return call


def under_load(name: str, call: Call, pictures: np.ndarray, clients: int, seconds: float) -> Measured:
    """So many clients, each with one picture after the other."""
    until = time.perf_counter() + seconds

    def client(number: int) -> list[float]:
        took, picture = [], pictures[number % len(pictures)][None]
        while (began := time.perf_counter()) < until:
            call(picture)
            took.append(1e3 * (time.perf_counter() - began))
        return took

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        took = [t for one in pool.map(client, range(clients)) for t in one]
    rate = len(took) / (time.perf_counter() - began)
    return Measured(name, clients, float(np.percentile(took, 50)), float(np.percentile(took, 99)), rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0", help="as of bench_encoder")
    parser.add_argument("--servers", nargs="*", default=list(SERVERS), choices=list(SERVERS))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench/encoder_servers.json"))
    args = parser.parse_args()
    batching = Batching(max_batch=16, instances=CORES)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as started:
        encoders = version(Path(scratch, "encoder"), args.model)
        calls: dict[str, Call] = {"in process": in_process(encoders.open(NAME))}
        for name in args.servers:
            folder = Path(scratch, str(len(calls)))  # tritonserver takes no path with a space
            folder.mkdir()
            server = SERVERS[name](folder, batching)
            server.write(encoders)
            started.callback(server.kill)
            server.start()
            calls[name] = encoders.open(NAME, runtime=EncoderServer(server.name, server.address, 60.0)).encode
        size = encoders.manifest.preprocess.size
        pictures = np.random.default_rng(1).integers(0, 256, (32, size, size, 3), dtype=np.uint8)
        best: dict[tuple[str, int], Measured] = {}
        for _ in range(args.rounds):
            for clients in args.clients:
                for name, call in calls.items():
                    found = under_load(name, call, pictures, clients, args.seconds)
                    key = name, clients
                    best[key] = max(best.get(key, found), found, key=lambda m: m.qps)
    print(f"{args.model}, {size} pixels, {CORES} cores\n{'encoder':<16}{'clients':>8}{'p50 ms':>9}{'p99 ms':>9}{'queries/s':>11}")
    for m in sorted(best.values(), key=lambda m: (m.clients, list(calls).index(m.encoder))):
        print(f"{m.encoder:<16}{m.clients:>8}{m.p50_ms:>9.1f}{m.p99_ms:>9.1f}{m.qps:>11.1f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"model": args.model, "cores": CORES, "rows": [asdict(m) for m in best.values()]}, indent=1))
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
