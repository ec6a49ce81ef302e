"""How fast each runtime encodes on the CPU: PyTorch eager, ONNX Runtime fp32 and int8, OpenVINO where it is installed.

    python -m tests.benchmarks.bench_encoder [--models demo_teacher demo_student ViT-B-32 RN50 …] [--catalogue FOLDER]

Every runtime takes its turn within each round, so that ratios are of runs side by side; the median over rounds counts.
Weights are random unless `--catalogue` is given: then the pair of `--preset` is trained on it and its recall, size and time are
printed beside. Prints a table and writes JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from serving.contract.encoder import OnnxEncoder
from tasks.encoder.export import ImageGraph, export_graph
from tasks.encoder.presets import EncoderConfig, TowerConfig, preset
from tasks.encoder.quantize import quantise_dynamic, quantise_static
from tasks.encoder.towers import ImageEncoder, build_student, build_teacher, parameters

BATCHES = (1, 8, 32)
MODELS = ("demo_teacher", "demo_student", "ViT-B-32", "ViT-B-16", "RN50")
CALIBRATION = 64

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One model in one runtime at one batch size."""

    model: str
    runtime: str
    batch: int
    images_per_s: float
    times_eager: float
    megabytes: float
    min_cosine: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--catalogue", default="")
    parser.add_argument("--preset", default="small", help="the pair that --catalogue trains")
    parser.add_argument("--out", type=Path, default=Path("bench_encoder.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for model in args.models for row in bench_model(model, args.threads, args.rounds)]
    print(f"{'model':<14}{'runtime':<16}{'batch':>6}{'images/s':>10}{'x eager':>9}{'MB':>8}{'min cos':>9}")
    for r in rows:
        print(
            f"{r.model:<14}{r.runtime:<16}{r.batch:>6}{r.images_per_s:>10.1f}{r.times_eager:>9.2f}{r.megabytes:>8.1f}{r.min_cosine:>9.4f}"
        )
    result = {"threads": args.threads, "rows": [asdict(r) for r in rows]}
    if args.catalogue:
        result["pair"] = bench_pair(args.catalogue, args.preset)
    args.out.write_text(json.dumps(result, indent=1))
    print(f"written to {args.out}")


def bench_model(model: str, threads: int, rounds: int) -> list[Row]:
    """Every runtime on one model."""
    encoder, size = image_encoder(model)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (max(*BATCHES, CALIBRATION), size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        runtimes, sizes = open_runtimes(encoder, pictures, Path(scratch), threads)
        reference = runtimes["eager"](pictures[:8])
        cosine = {name: float((run(pictures[:8]) * reference).sum(axis=1).min()) for name, run in runtimes.items()}
        rows = []
        for batch in BATCHES:
            rate = {name: batch / seconds for name, seconds in timed(runtimes, pictures[:batch], rounds).items()}
            rows += [Row(model, name, batch, r, r / rate["eager"], sizes[name] / 1e6, cosine[name]) for name, r in rate.items()]
    return rows


def image_encoder(model: str) -> tuple[ImageEncoder, int]:
    """A model's image encoder with random weights, and the side of its pictures."""
    if model.startswith("demo_"):
        config = preset("demo")
        built = build_teacher(config).image if model == "demo_teacher" else build_student(config)
        return built.eval(), config.preprocess.size
    config = replace(preset("vit_b16"), teacher=TowerConfig(open_clip=model), dim=1024 if model == "RN50" else 512)
    return build_teacher(config).image.eval(), config.preprocess.size


def open_runtimes(
    encoder: ImageEncoder, pictures: np.ndarray, folder: Path, threads: int
) -> tuple[dict[str, Run], dict[str, int]]:
    """Each runtime as a function of pixels, and the bytes of its model."""
    graph = ImageGraph(encoder).eval()

    def eager(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return graph(torch.from_numpy(batch)).numpy()

    export_graph(graph, torch.from_numpy(pictures[:2].copy()), folder / "fp32.onnx")
    quantise_static(folder / "fp32.onnx", folder / "int8 static.onnx", pictures[:CALIBRATION], "minmax")
    quantise_dynamic(folder / "fp32.onnx", folder / "int8 dynamic.onnx")
    runtimes: dict[str, Run] = {"eager": eager}
    sizes = {"eager": 4 * parameters(encoder)}
    for path in sorted(folder.glob("*.onnx")):
        name = f"ort {path.stem}"
        runtimes[name], sizes[name] = OnnxEncoder(path, name, "", threads).encode, path.stat().st_size
    for path in sorted(folder.glob("*.onnx")):
        run = openvino_run(path, threads)
        if run is not None and "dynamic" not in path.stem:
            runtimes[f"ov {path.stem}"], sizes[f"ov {path.stem}"] = run, path.stat().st_size
    return runtimes, sizes


def openvino_run(path: Path, threads: int) -> Run | None:
    """The graph in OpenVINO, or None where it is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda batch: np.asarray(next(iter(compiled(batch).values())))


def timed(runtimes: dict[str, Run], batch: np.ndarray, rounds: int) -> dict[str, float]:
    """The median seconds of one call of each runtime, taken in turns."""
    spent: dict[str, list[float]] = {name: [] for name in runtimes}
    for run in runtimes.values():
        run(batch)
    for _ in range(rounds):
        for name, run in runtimes.items():
            began = time.perf_counter()
            run(batch)
            spent[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in spent.items()}


def bench_pair(catalogue: str, name: str) -> dict[str, float]:
    """Trains the pair of a preset on a catalogue folder and measures it through its exported files."""
    from tasks.catalog.snapshot import take_snapshot
    from tasks.encoder.evaluate import evaluate_encoder
    from tasks.encoder.export import export_encoder
    from tasks.encoder.loop import quiet
    from tasks.encoder.student import distil_student
    from tasks.encoder.teacher import train_teacher

    config: EncoderConfig = preset(name)
    with tempfile.TemporaryDirectory() as scratch:
        work, folder = Path(scratch) / "work", Path(scratch) / "encoder"
        snapshot = take_snapshot(catalogue, f"{scratch}/snapshots", "bench")
        teacher = train_teacher(snapshot.uri, config, work, quiet)
        student = distil_student(snapshot.uri, teacher, config, work, quiet)
        export_encoder(snapshot.uri, teacher, student, config, work, folder)
        report = evaluate_encoder(folder, snapshot.uri, work)
    print(f"\n{len(report.photos)} held-out photos against {report.products} products")
    for pair in report.pairs:
        figures = "  ".join(f"{k} {r.value:.3f} ({r.low:.3f}-{r.high:.3f})" for k, r in pair.recall.items())
        print(f"{pair.query:<18} on {pair.document:<18} {figures}")
    for tower in (teacher, student):
        print(
            f"{tower.tower}: {tower.steps} steps, {tower.seconds:.0f} s ({tower.cpu_seconds:.0f} CPU-s), "
            f"peak memory {tower.peak_memory_bytes / 2**30:.2f} GiB"
        )
    return report.flat() | {
        f"{t.tower}.{k}": float(getattr(t, k))
        for t in (teacher, student)
        for k in ("seconds", "cpu_seconds", "peak_memory_bytes")
    }


if __name__ == "__main__":
    main()
