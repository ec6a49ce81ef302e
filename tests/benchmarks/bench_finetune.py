"""What pretrained weights, their fine-tuning, the interpolation and a student are worth on a catalogue folder.

    python -m tests.benchmarks.bench_finetune --catalogue FOLDER [--preset demo_pair] [--interpolate] [--student NAME] [--work FOLDER]

Trains the pair of a preset and prints Recall@1 and @10 of the held-out photos with 95 % intervals, and milliseconds a picture: a colour
histogram, the pretrained encoder as it is, the fine-tuned teacher before and after the interpolation, the student, and what is
quantised; with steps and processor seconds of each training. The interpolation is chosen on train photos that are kept out of the
training, never on the photos that are reported here. Writes the JSON file.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from serving.contract.encoder import EncoderFolder
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.encoder.config import EncoderConfig, TowerConfig
from tasks.encoder.data.photos import read_training_set
from tasks.encoder.data.pixels import cached_pixels
from tasks.encoder.evaluate.baselines import HISTOGRAM, PRETRAINED, encode_eager
from tasks.encoder.evaluate.evaluate import EncoderReport, evaluate_encoder
from tasks.encoder.evaluate.retrieval_metrics import Interval, interval, ranks
from tasks.encoder.evaluate.speedup import measure_speedup
from tasks.encoder.export.export import export_encoder
from tasks.encoder.lookup import find_encoder
from tasks.encoder.train.interpolation import between, pretrained_state
from tasks.encoder.train.loop import no_log
from tasks.encoder.train.student import distil_student
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.tower_record import TrainedTower
from tasks.encoder.train.tower_store import restore_teacher
from tasks.encoder.train.towers import build_teacher

Row = tuple[str, Interval, Interval]
OTHER = 0.7
"""The share of the training that is shown beside the chosen one, where that is all of it."""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogue", required=True)
    parser.add_argument("--preset", default="demo_pair")
    parser.add_argument(
        "--interpolate", action="store_true", help="also where the preset does not: a tenth of the train photos is kept out"
    )
    parser.add_argument("--student", help="a timm tower in place of the preset's student")
    parser.add_argument("--student-size", type=int, default=0, help="side of the pictures that this one computes on")
    parser.add_argument("--student-steps", type=int, default=0)
    parser.add_argument("--work", default="", help="a folder that keeps trainings and pictures for the next call")
    parser.add_argument("--out", type=Path, default=Path("build/bench/finetune.json"))
    args = parser.parse_args()
    with working(args.work) as work:
        result = bench(args.catalogue, chosen_config(args), work)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))
    print(f"written to {args.out}")


def chosen_config(args: argparse.Namespace) -> EncoderConfig:
    """The preset with what the arguments change."""
    config = find_encoder(args.preset)
    if args.interpolate:
        config = replace(config, teacher_recipe=replace(config.teacher_recipe, interpolate=True))
    if args.student:
        config = replace(config, student=TowerConfig(timm=args.student, size=args.student_size))
    if args.student_steps:
        config = replace(config, student_recipe=replace(config.student_recipe, steps=args.student_steps))
    return config


@contextmanager
def working(folder: str) -> Iterator[Path]:
    """The folder, or one that is removed at the end."""
    with TemporaryDirectory() as scratch:
        yield Path(folder or scratch)


def bench(catalogue: str, config: EncoderConfig, work: Path) -> dict[str, float]:
    """Trains, exports and evaluates; prints and returns the figures by name."""
    snapshot = take_snapshot(catalogue, f"{work}/snapshots", "bench")
    teacher = train_teacher(snapshot.uri, config, work, no_log)
    told(teacher)
    student = distil_student(snapshot.uri, teacher, config, work, no_log) if config.student else None
    if student is not None:
        told(student)
    folder = work / "encoder"
    manifest = export_encoder(snapshot.uri, teacher, student, config, work, folder)
    report = evaluate_encoder(folder, snapshot.uri, work)
    rows = [*reported(report), *before_interpolation(teacher, config, snapshot, work)]
    opened = EncoderFolder(folder)
    ms = {name: milliseconds(opened, name) for name in manifest.names() if not name.startswith("text.")}
    print(
        f"\n{len(report.photos)} held-out photos ({report.split}) against {report.products} products; ms: one picture, one thread"
    )
    result = {f"{name}.ms": value for name, value in ms.items()}
    for name, at_1, at_10 in rows:
        took = f"{ms[name]:6.1f} ms" if name in ms else ""
        print(f"{name:<46} Recall@1 {text(at_1)}   Recall@10 {text(at_10)}   {took}")
        result |= {f"{name}.recall_at_1": at_1.value, f"{name}.recall_at_10": at_10.value}
    for name in [n for n in manifest.names() if n.startswith("student") or n == "teacher.int8"]:
        result[f"{name}.times_faster"] = measure_speedup(opened, name, "teacher.fp32")
        print(f"{name}: {result[f'{name}.times_faster']:.1f} times as fast as teacher.fp32, one picture, one thread")
    print(f"queries by {manifest.query}; {manifest.recipe['notes']}")
    costs = {f"{t.tower}.{k}": float(getattr(t, k)) for t in (teacher, student) if t for k in ("steps", "seconds", "cpu_seconds")}
    return result | costs


def milliseconds(opened: EncoderFolder, name: str, times: int = 15) -> float:
    """Median milliseconds of one picture through a variant, on one thread."""
    size = opened.manifest.preprocess.size
    picture = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    encoder, taken = opened.open(name, 1), []
    for _ in range(times):
        began = time.perf_counter()
        encoder.encode(picture)
        taken.append(1e3 * (time.perf_counter() - began))
    return float(np.median(taken))


def told(trained: TrainedTower) -> None:
    """Prints the cost of a training, and what was tried between its start and its end."""
    print(
        f"{trained.tower}: {trained.parameters / 1e6:.2f}M parameters, {trained.steps} steps in {trained.seconds:.0f} s, "
        f"{trained.cpu_seconds:.0f} processor seconds, {trained.peak_memory_bytes / 2**30:.1f} GiB",
        flush=True,
    )
    if trained.interpolation is not None:
        print(
            f"  share {trained.interpolation.share:g}, chosen on {trained.interpolation.photos} photos kept out of the training:"
        )
        for t in trained.interpolation.tried:
            print(f"  {t.share:g}: Recall@1 {t.recall_at_1:.3f}, Recall@10 {t.recall_at_10:.3f}, MRR {t.mrr:.3f}", flush=True)


NAMES = {HISTOGRAM: "colour histogram", PRETRAINED: "pretrained, as it is"}


def reported(report: EncoderReport) -> Iterator[Row]:
    """What the evaluation measured against the version's documents, or of a baseline against itself."""
    for pair in report.pairs:
        if pair.document in (report.document, pair.query if pair.query in NAMES else ""):
            name = NAMES.get(pair.query, pair.query) + ("" if pair.asked == "photos" else f", {pair.asked} ({len(pair.ranks)})")
            at_1, at_10 = (pair.recall[f"recall_at_{k}"] for k in (1, 10))
            yield name, Interval(at_1.value, at_1.low, at_1.high, 0), Interval(at_10.value, at_10.low, at_10.high, 0)


def before_interpolation(teacher: TrainedTower, config: EncoderConfig, snapshot: Snapshot, work: Path) -> Iterator[Row]:
    """The teacher as its training left it, on held-out photos and on those of unseen products; where it stayed so, most of the way."""
    chosen = teacher.interpolation
    if chosen is None or not chosen.share:
        return
    built = build_teacher(config)
    start = pretrained_state(built, config)
    restored = restore_teacher(teacher, config)
    now = {name: tensor for name, tensor in restored.model.state_dict().items() if name in start}
    share = 1.0 if chosen.share < 1 else OTHER
    restored.model.load_state_dict(between(start, now, share / chosen.share), strict=False)
    training = read_training_set(snapshot.uri)
    shown = cached_pixels(training.image_uris, training.root, config.preprocess, work / "pixels", "document")
    xb = encode_eager(restored.image, shown.array)
    for name, photos in (("photos", training.held_out()), ("unseen", training.split("unseen"))):
        asked = cached_pixels(photos.uris, training.root, config.preprocess, work / "pixels", "query")
        similarity = encode_eager(restored.image, asked.array) @ xb.T
        similarity[:, ~shown.usable] = -np.inf
        rank = ranks(similarity, photos.products)[asked.usable]
        yield f"teacher at the share {share:g}, {name}", interval(rank <= 1), interval(rank <= 10)


def text(figure: Interval) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"


if __name__ == "__main__":
    main()
