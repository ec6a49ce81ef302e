"""The parts of gpu_check, each run in a process of its own: `python -m tests.benchmarks.gpu_parts NAME [--tiny]`.

A part prints one JSON object a line as it is measured, so that what is there counts when its time is up.
"""

import argparse
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import cycle, islice
from os import cpu_count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tests.benchmarks import gpu_models
from tests.benchmarks.gpu_models import B16, B32, SIGLIP2, TINY, ImageEncoder, Model

Row = dict[str, Any]
CLIENTS = (1, 2, 4, 8, 16)


class NotRun(Exception):
    """A part cannot run here; the message says why."""


class Bench:
    """Sizes and times of one run: on CUDA, or with `tiny` on the CPU with a small model, for trying the script."""

    def __init__(self, tiny: bool = False) -> None:
        if not tiny and not torch.cuda.is_available():
            raise NotRun("torch sees no CUDA device; --tiny tries the parts on the CPU")
        self.tiny, self.device = tiny, "cpu" if tiny else "cuda"
        self.seconds, self.batch = (0.05, 4) if tiny else (5.0, 512)
        self.train_batch = 4 if tiny else 256
        self.models: tuple[Model, ...] = (TINY,) if tiny else (B32, B16, SIGLIP2)
        self.rows, self.dim = (500, 16) if tiny else (1_000_000, 512)
        if not tiny:
            torch.backends.cuda.matmul.allow_tf32 = True

    def sync(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def rate(self, run: Callable[[], int]) -> float:
        """Things a second of a function that does some and says how many, after one call that warms it up."""
        run()
        self.sync()
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < self.seconds:
            done += run()
        self.sync()
        return done / (time.perf_counter() - began)

    def bf16(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16, enabled=not self.tiny)  # a CPU may have to emulate it

    def encoder(self, model: Model) -> tuple[ImageEncoder, str]:
        """In bf16 on the GPU, for inference."""
        encoder, maker = gpu_models.build(model, self.device)
        return encoder.eval().to(torch.float32 if self.tiny else torch.bfloat16), maker

    def vectors(self, encoder: ImageEncoder, pixels: np.ndarray | Tensor) -> np.ndarray:
        """Unit vectors (n, d) float32 on the host."""
        on_device = torch.as_tensor(pixels).to(self.device, non_blocking=True)
        with torch.inference_mode():
            return encoder(on_device).float().cpu().numpy()


def training(bench: Bench) -> Iterator[Row]:
    """Contrastive steps (sigmoid loss over two views of random pictures, AdamW, bf16): steps and pictures a second, peak memory."""
    for model in bench.models[:2]:
        yield _train(bench, model)


def _train(bench: Bench, model: Model) -> Row:
    encoder, maker = gpu_models.build(model, bench.device)
    optimizer = torch.optim.AdamW(encoder.train().parameters(), 1e-5)
    n, device = bench.train_batch, bench.device
    views = torch.randint(0, 256, (2, n, model.size, model.size, 3), dtype=torch.uint8, device=device)
    labels = 2 * torch.eye(n, device=device) - 1

    def step() -> int:
        with bench.bf16():
            one, two = encoder(views[0]), encoder(views[1])
        loss = -functional.logsigmoid(labels * (10 * one @ two.T - 10)).sum() / n
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return 1

    steps = bench.rate(step)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return {
        "model": model.name, "by": maker, "batch": n, "steps_per_s": steps, "pictures_per_s": 2 * n * steps, "peak_gib": peak,
    }  # fmt: skip


def embedding(bench: Bench) -> Iterator[Row]:
    """Pictures a second from JPEG bytes to vectors in bf16: a plain loop, decoded ahead by threads, by nvJPEG, and without decoding."""
    jpegs = gpu_models.draw_jpegs(*((8, 200) if bench.tiny else ()))
    for model in bench.models:
        yield from _embed(bench, model, _batches(jpegs, bench.batch))


def _embed(bench: Bench, model: Model, batches: Iterator[list[bytes]]) -> Iterator[Row]:
    encoder, maker = bench.encoder(model)
    decode, decoder = gpu_models.our_decoder(model.size)
    pixels = torch.zeros((bench.batch, model.size, model.size, 3), dtype=torch.uint8, device=bench.device)
    base = {"model": model.name, "by": maker, "batch": bench.batch}

    def rate(next_pixels: Callable[[], Any]) -> float:
        return bench.rate(lambda: len(bench.vectors(encoder, next_pixels())))

    plain = rate(lambda: np.stack([gpu_models.decode_plain(data, model.size) for data in next(batches)]))
    yield base | {"way": "plain torch loop", "pictures_per_s": plain}
    threads = cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        ahead = _decoded_ahead(pool, decode, batches)
        yield base | {"way": f"decoded ahead by {threads} threads ({decoder})", "pictures_per_s": rate(lambda: next(ahead))}
    yield base | {"way": "no decoding", "pictures_per_s": rate(lambda: pixels)}
    try:
        if bench.device != "cuda":
            raise NotRun("no CUDA device")
        nvjpeg: Any = rate(lambda: gpu_models.decode_on_gpu(next(batches), model.size, bench.device))
    except (NotRun, ImportError, RuntimeError) as error:
        nvjpeg = f"not run: {str(error).splitlines()[0]}"
    yield base | {"way": "nvJPEG", "pictures_per_s": nvjpeg}


def _batches(jpegs: Sequence[bytes], size: int) -> Iterator[list[bytes]]:
    endless = cycle(jpegs)
    while True:
        yield list(islice(endless, size))


def _decoded_ahead(
    pool: ThreadPoolExecutor, decode: Callable[[bytes], np.ndarray], batches: Iterator[list[bytes]]
) -> Iterator[np.ndarray]:
    """Batches of pixels, of which two more are being decoded, as the embedding job does it."""
    waiting = [[pool.submit(decode, data) for data in next(batches)] for _ in range(3)]
    while True:
        yield np.stack([job.result() for job in waiting.pop(0)])
        waiting.append([pool.submit(decode, data) for data in next(batches)])


def latency(bench: Bench) -> Iterator[Row]:
    """One picture a request: p50 and p99 in ms and queries/s with 1 to 16 clients, each its own stream."""
    model = TINY if bench.tiny else B16
    encoder, maker = bench.encoder(model)
    pixels = np.random.default_rng(0).integers(0, 256, (1, model.size, model.size, 3), dtype=np.uint8)

    def client(until: list[float], spent: list[float]) -> None:
        stream: Any = torch.cuda.stream(torch.cuda.Stream()) if bench.device == "cuda" else nullcontext()
        with stream:
            while time.perf_counter() < until[0]:
                began = time.perf_counter()
                bench.vectors(encoder, pixels)
                spent.append(time.perf_counter() - began)

    for clients in CLIENTS[:2] if bench.tiny else CLIENTS:
        bench.vectors(encoder, pixels)
        spent: list[float] = []
        began = time.perf_counter()
        threads = [threading.Thread(target=client, args=([began + bench.seconds], spent)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
        p50, p99 = 1e3 * np.percentile(spent, [50, 99])
        yield {
            "model": model.name,
            "by": maker,
            "clients": clients,
            "p50_ms": p50,
            "p99_ms": p99,
            "queries_per_s": len(spent) / took,
        }


def onnxruntime(bench: Bench) -> Iterator[Row]:
    """B/32 by ONNX Runtime on CUDA in batches of 1 and 64: pictures a second."""
    import io

    import onnxruntime as ort

    wanted = "CPUExecutionProvider" if bench.tiny else "CUDAExecutionProvider"
    if wanted not in ort.get_available_providers():
        raise NotRun(f"onnxruntime {ort.__version__} has no {wanted}")
    model = TINY if bench.tiny else B32
    encoder, maker = gpu_models.build(model, "cpu")
    example = torch.zeros((2, model.size, model.size, 3), dtype=torch.uint8)
    stream = io.BytesIO()
    axes = {"pixels": {0: "n"}, "vectors": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is called an old one
        torch.onnx.export(
            encoder.eval(), (example,), stream, input_names=["pixels"], output_names=["vectors"], dynamic_axes=axes, dynamo=False
        )
    session = ort.InferenceSession(stream.getvalue(), providers=[wanted])
    if session.get_providers()[0] != wanted:
        raise NotRun(f"onnxruntime {ort.__version__} fell back to {session.get_providers()[0]}")
    for batch in (1, 2) if bench.tiny else (1, 64):
        pixels = np.zeros((batch, model.size, model.size, 3), np.uint8)
        rate = bench.rate(lambda pixels=pixels: len(session.run(None, {"pixels": pixels})[0]))  # type: ignore[misc]
        yield {"model": model.name, "by": maker, "provider": wanted, "batch": batch, "pictures_per_s": rate}


def faiss(bench: Bench) -> Iterator[Row]:
    """Exact search of 64 queries by faiss on the GPU: queries a second."""
    import faiss

    if not bench.tiny and not getattr(faiss, "get_num_gpus", lambda: 0)():
        raise NotRun(f"faiss {faiss.__version__} was built without GPUs, or sees none")
    xb = np.random.default_rng(0).standard_normal((bench.rows, bench.dim), np.float32)
    index: Any = faiss.IndexFlatIP(bench.dim)
    if not bench.tiny:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(xb)
    rate = bench.rate(lambda: len(index.search(xb[:64], 10)[0]))
    yield {"rows": bench.rows, "dim": bench.dim, "queries_per_s": rate, "version": faiss.__version__}


def spark(bench: Bench) -> Iterator[Row]:
    """Whether Spark hands a task its GPU: the addresses that a task of a one-worker cluster sees."""
    from shutil import which

    from pyspark.sql import SparkSession

    if not which("java"):
        raise NotRun("there is no java")
    if bench.tiny:
        raise NotRun("Spark hands out GPUs only where there are some")
    script = "docker/gpu-discovery.sh"
    options = {
        "spark.worker.resource.gpu.amount": "1", "spark.worker.resource.gpu.discoveryScript": script,
        "spark.executor.resource.gpu.amount": "1", "spark.executor.resource.gpu.discoveryScript": script,
        "spark.task.resource.gpu.amount": "1", "spark.ui.enabled": "false", "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
    }  # fmt: skip
    builder = SparkSession.builder.master("local-cluster[1,1,1024]").appName("gpu-check")
    for name, value in options.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()

    def addresses(_: object) -> list[str]:
        from pyspark import TaskContext

        context = TaskContext.get()
        return context.resources()["gpu"].addresses if context else []

    began = time.perf_counter()
    found = session.sparkContext.parallelize([0], 1).flatMap(addresses).collect()
    yield {"gpu_addresses": found, "seconds": time.perf_counter() - began}
    session.stop()


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    f.__name__: f for f in (training, embedding, latency, onnxruntime, faiss, spark)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    try:
        for row in PARTS[args.part](Bench(args.tiny)):
            print(json.dumps(row, default=float), flush=True)
    except (NotRun, ImportError) as error:
        print(json.dumps({"not_run": str(error)}), flush=True)


if __name__ == "__main__":
    main()
