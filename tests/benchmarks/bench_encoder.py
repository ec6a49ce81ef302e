"""How fast each runtime encodes on the CPU: PyTorch eager, and every runtime of the contract on fp32, 16 bits and int8.

    python -m tests.benchmarks.bench_encoder [--models demo_teacher demo_student ViT-B-32 RN50 …] [--catalogue FOLDER]

A model is one of open_clip's, one of timm's, a pretrained preset (its architecture with random weights, at its own picture size), or
a tower of the preset demo_pair. Every runtime takes its turn within each round, so
that ratios are of runs side by side; the quickest round counts, as it was disturbed least. `--cpu` counts processor time instead of
time on the clock: on a machine that others use too, only that tells the runtimes apart. Weights are random unless `--catalogue` is
given: then the pair of `--preset` is trained on it and its recall, size and time are printed beside. Prints a table and adds to the
JSON file.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps

from serving.contract.files import ContractError
from serving.contract.preprocess import decode
from serving.contract.runtimes import RUNTIMES
from tasks.encoder.config import EncoderConfig, TowerConfig
from tasks.encoder.export.onnx_graph import ImageGraph, write_half, write_onnx
from tasks.encoder.export.quantize import has_attention, quantize_dynamic, quantize_static
from tasks.encoder.presets import PRETRAINED, preset
from tasks.encoder.train.towers import ImageEncoder, build_student, build_teacher, parameters

BATCHES = (1, 8, 32)
MODELS = ("demo_teacher", "demo_student", "ViT-B-32", "ViT-B-16", "RN50")
ALIKE = {"marqo_ecommerce_b": "ViT-B-16-SigLIP"}
"""The listed architecture that a model on the hub was fine-tuned from, for where the hub cannot be reached."""
CALIBRATION = 16
"""Pictures that set int8's ranges: of random weights nothing but the speed counts."""

REST_S = 0.05
"""Between two runtimes: the threads of the one before spin for a while, and would be measured with the next."""

Run = Callable[[np.ndarray], np.ndarray]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One model in one runtime at one batch size: its quickest round, and the median beside."""

    model: str
    runtime: str
    batch: int
    images_per_s: float
    times_eager: float
    times_ort: float
    megabytes: float
    min_cosine: float
    median_images_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--cpu", action="store_true", help="processor time instead of time on the clock")
    parser.add_argument("--quick", action="store_true", help="ONNX Runtime alone: fp32, and int8 of the quicker kind to make")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--catalogue", default="")
    parser.add_argument("--preset", default="small", help="the pair that --catalogue trains")
    parser.add_argument("--decoder", default="", help="an encoder by name: recall on --catalogue by our decoder, and by its own")
    parser.add_argument("--out", type=Path, default=Path("build/bench/encoder.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu else time.perf_counter
    result = json.loads(args.out.read_text()) if args.out.is_file() else {"rows": []}
    print(f"{'model':<24}{'runtime':<30}{'batch':>6}{'images/s':>10}{'x eager':>9}{'x ORT':>7}{'MB':>8}{'min cos':>9}")
    for model in args.models:
        rows = bench_model(model, args.batches, args.threads, args.rounds, clock, args.quick)
        for r in rows:
            print(
                f"{r.model:<24}{r.runtime:<30}{r.batch:>6}{r.images_per_s:>10.1f}{r.times_eager:>9.2f}{r.times_ort:>7.2f}"
                f"{r.megabytes:>8.1f}{r.min_cosine:>9.4f}",
                flush=True,
            )
        result |= {"threads": args.threads, "clock": clock.__name__}
        result["rows"] = [r for r in result["rows"] if r["model"] != model] + [asdict(r) for r in rows]
    if args.catalogue and args.decoder:
        result["decoder"] = bench_decoder(args.catalogue, args.decoder)
    elif args.catalogue:
        result["pair"] = bench_pair(args.catalogue, args.preset)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))
    print(f"written to {args.out}")


def bench_model(model: str, batches: list[int], threads: int, rounds: int, clock: Clock, quick: bool = False) -> list[Row]:
    """Every runtime on one model, or with `quick` ONNX Runtime alone, beside PyTorch."""
    encoder, size = image_encoder(model)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (max(*batches, CALIBRATION), size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        runtimes, sizes = open_runtimes(encoder, pictures, Path(scratch), threads, quick)
        reference = runtimes["eager"](pictures[:8])
        cosine = {name: float((run(pictures[:8]) * reference).sum(axis=1).min()) for name, run in runtimes.items()}
        rows = []
        for batch in batches:
            spent = timed(runtimes, pictures[:batch], rounds * (4 if batch == 1 else 1), clock)
            rate = {name: batch / min(seconds) for name, seconds in spent.items()}
            rows += [
                Row(
                    model, name, batch, r, r / rate["eager"], r / rate["onnxruntime fp32"], sizes[name] / 1e6, cosine[name],
                    batch / statistics.median(spent[name]),
                )
                for name, r in rate.items()
            ]  # fmt: skip
    return rows


def image_encoder(model: str) -> tuple[ImageEncoder, int]:
    """A model's image encoder with random weights, and the side of its pictures."""
    if model.startswith("demo_"):
        config = preset("demo_pair")
        built = build_teacher(config).image if model == "demo_teacher" else build_student(config)
        return built.eval(), config.preprocess.size
    published = next((p for p in PRETRAINED if p.name == model), None)
    if published is not None:
        name = ALIKE.get(model, published.tower.open_clip)
        tower = replace(published.tower, open_clip=name, pretrained="")
        built = build_teacher(replace(published.config(), teacher=tower), load_pretrained=False).image
        print(f"{model}: {parameters(built) / 1e6:.1f}M parameters, {published.dim} numbers, {published.preprocess.size} pixels")
        return built.eval(), published.preprocess.size
    config = preset("vit_b16")
    if model not in open_clip.list_models():
        return build_student(replace(config, student=TowerConfig(timm=model))).eval(), config.preprocess.size
    dim = open_clip.get_model_config(model)["embed_dim"]
    return build_teacher(replace(config, teacher=TowerConfig(open_clip=model), dim=dim)).image.eval(), config.preprocess.size


def open_runtimes(
    encoder: ImageEncoder, pictures: np.ndarray, folder: Path, threads: int, quick: bool = False
) -> tuple[dict[str, Run], dict[str, int]]:
    """Each runtime as a function of pixels, and the bytes of its model. A runtime that is not installed is left out."""
    graph = ImageGraph(encoder).eval()

    def eager(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return graph(torch.from_numpy(batch)).numpy()

    fp32 = folder / "fp32.onnx"
    write_onnx(graph, torch.from_numpy(pictures[:2].copy()), fp32)
    files = {"fp32": fp32} | (quick_variant(fp32, pictures) if quick else variants(fp32, pictures))
    runtimes: dict[str, Run] = {"eager": eager}
    sizes = {"eager": 4 * parameters(encoder)}
    for runtime in (RUNTIMES["onnxruntime"],) if quick else RUNTIMES.values():
        for variant, path in files.items():
            if variant == "fp16" and runtime.name == "onnxruntime":
                continue  # on a CPU ONNX Runtime computes it in fp32, with conversions around every node
            try:
                run = runtime.open(path, variant.partition(" ")[0], threads)
            except ContractError:
                continue
            name = f"{runtime.name} {variant}"
            runtimes[name], sizes[name] = run, path.stat().st_size
    return runtimes, sizes


def quick_variant(fp32: Path, pictures: np.ndarray) -> dict[str, Path]:
    """int8 of one kind: dynamic for attention, which needs no pictures, static for convolutions."""
    path = fp32.with_name("int8.onnx")
    if has_attention(fp32):
        quantize_dynamic(fp32, path)
        return {"int8 dynamic": path}
    quantize_static(fp32, path, pictures[:CALIBRATION], "minmax")
    return {"int8 static": path}


def variants(fp32: Path, pictures: np.ndarray) -> dict[str, Path]:
    """Every variant of a graph, written beside it."""
    calibration = pictures[:CALIBRATION]
    files = {name: fp32.with_name(f"{name}.onnx") for name in ("fp16", "int8 static")}
    write_half(fp32, files["fp16"])
    quantize_static(fp32, files["int8 static"], calibration, "minmax")
    files["int8 dynamic"] = fp32.with_name("dynamic.onnx")
    quantize_dynamic(fp32, files["int8 dynamic"])
    if has_attention(fp32):
        files["int8 static, attention fp32"] = fp32.with_name("attention.onnx")
        quantize_static(fp32, files["int8 static, attention fp32"], calibration, "minmax", attention=False)
    return files


def timed(runtimes: dict[str, Run], batch: np.ndarray, rounds: int, clock: Clock) -> dict[str, list[float]]:
    """The seconds of each call of each runtime, taken in turns."""
    spent: dict[str, list[float]] = {name: [] for name in runtimes}
    for run in runtimes.values():
        run(batch)
    for _ in range(rounds):
        for name, run in runtimes.items():
            began = clock()
            run(batch)
            spent[name].append(clock() - began)
            time.sleep(REST_S)
    return spent


def bench_pair(catalogue: str, name: str) -> dict[str, float]:
    """Trains the pair of a preset on a catalogue folder and measures it through its exported files."""
    from tasks.catalog.snapshot import take_snapshot
    from tasks.encoder.evaluate.evaluate import evaluate_encoder
    from tasks.encoder.export.export import export_encoder
    from tasks.encoder.train.loop import no_log
    from tasks.encoder.train.student import distil_student
    from tasks.encoder.train.teacher import train_teacher

    config: EncoderConfig = preset(name)
    with tempfile.TemporaryDirectory() as scratch:
        work, folder = Path(scratch) / "work", Path(scratch) / "encoder"
        snapshot = take_snapshot(catalogue, f"{scratch}/snapshots", "bench")
        teacher = train_teacher(snapshot.uri, config, work, no_log)
        student = distil_student(snapshot.uri, teacher, config, work, no_log)
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


def bench_decoder(catalogue: str, name: str) -> dict[str, float]:
    """Recall of a pretrained encoder as it is: pictures by our decoder, by the model's own Pillow transform, and by that without
    the margin that timm cuts off."""
    from tasks.catalog.snapshot import take_snapshot
    from tasks.embed.images import read_image
    from tasks.encoder.data.photos import read_training_set
    from tasks.encoder.evaluate.baselines import encode_eager
    from tasks.encoder.evaluate.retrieval_metrics import ranks, recall_at
    from tasks.encoder.lookup import as_it_is, find_encoder

    config = as_it_is(find_encoder(name))
    teacher = build_teacher(config)
    encoder = teacher.image.eval()
    ways: dict[str, Callable[[bytes], np.ndarray]] = {"ours": lambda data: decode(data, config.preprocess)}
    for label, transform in own_transforms(config, teacher.model.visual).items():
        ways[label] = partial(by_pillow, transform)
    with tempfile.TemporaryDirectory() as scratch:
        snapshot = take_snapshot(catalogue, f"{scratch}/snapshots", "bench")
        training = read_training_set(snapshot.uri)
        photos, found = training.held_out(), {}
        for label, way in ways.items():
            xb, xq = (
                np.concatenate([encode_eager(encoder, way(read_image(uri, training.root))[None]) for uri in uris])
                for uris in (training.image_uris, photos.uris)
            )
            rank = ranks(xq @ xb.T, photos.products)
            found |= {f"{label}.recall_at_{k}": recall_at(rank, k) for k in (1, 10)}
            print(f"{name}, {label}: Recall@1 {recall_at(rank, 1):.3f}, Recall@10 {recall_at(rank, 10):.3f}", flush=True)
    return found


def own_transforms(config: EncoderConfig, visual: Any) -> dict[str, Callable[[Any], torch.Tensor]]:
    """The model's own ways from a Pillow picture to numbers in [0, 1]; normalising is the encoder's part."""
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if config.teacher.timm:
        size = config.preprocess.size
        own = timm.data.resolve_data_config({}, model=visual.trunk) | plain | {"input_size": (3, size, size)}
        make = timm.data.create_transform
        return {"its own": make(**own), "its own, no margin": make(**own | {"crop_pct": 1.0})}
    return {"its own": image_transform_v2(PreprocessCfg(**visual.preprocess_cfg | plain), is_train=False)}


def by_pillow(transform: Callable[[Any], torch.Tensor], data: bytes) -> np.ndarray:
    """Pixels (size, size, 3) uint8 of a picture by Pillow and a model's own transform."""
    tensor = transform(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    return (tensor * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


if __name__ == "__main__":
    main()
