"""Our embedding job against `clip-retrieval inference`: the same weights, the same pictures, each from start to end.

    python -m tests.benchmarks.bench_clip_retrieval [--model ViT-B-32] [--images 400] [--photos FOLDER] [--out build/bench]

clip-retrieval runs in an environment of its own, build/peers/clip-retrieval, made beforehand:
`uv venv build/peers/clip-retrieval && VIRTUAL_ENV=build/peers/clip-retrieval uv pip install clip-retrieval 'setuptools<81'`.
Each job runs over n and over 2n pictures, in turns; the difference is its steady speed, reading and decoding included. Weights are
random, so that int8's recall cannot be judged: its least cosine to fp32 is printed, and how many of the ten nearest pictures of each
picture are the same. `--photos`: a folder of JPEGs in place of drawn ones. Writes clip_retrieval.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import open_clip
import torch

from serving.contract.encoder import EncoderFolder
from serving.contract.files import describe
from serving.contract.manifest import EncoderManifest, Variant, fingerprint
from serving.contract.preprocess import PreprocessSpec, decode
from tasks.catalog.snapshot import take_snapshot
from tasks.embed.job import EmbedConfig, embed_snapshot
from tasks.encoder.config import TowerConfig
from tasks.encoder.export.onnx_graph import ImageGraph, write_onnx
from tasks.encoder.export.quantize import quantize_dynamic, quantize_static
from tasks.encoder.presets import preset
from tasks.encoder.train.towers import build_teacher
from tests.benchmarks.bench_embed import draw

PEER = Path("build/peers/clip-retrieval/bin")
CORES = 2
SIZE = 224
CALIBRATION = 32


def pictures(folder: Path, count: int, photos: Path | None) -> list[Path]:
    folder.mkdir()
    if photos is not None:
        found = sorted(photos.rglob("*.jpg"))[:count]
        if len(found) < count:
            raise SystemExit(f"{photos} has {len(found)} JPEGs, {count} are needed")
        return [Path(shutil.copy(p, folder / f"{n:05d}.jpg")) for n, p in enumerate(found)]
    for number in range(count):
        draw(folder / f"{number:05d}.jpg", number)
    return sorted(folder.iterdir())


def encoder(folder: Path, model: str, checkpoint: Path, files: list[Path]) -> None:
    """Exports the model's image tower by the pipeline's own code, fp32 and both ways of int8, and writes its weights for the peer."""
    folder.mkdir()
    config = preset("vit_b16")
    dim = int(open_clip.get_model_config(model)["embed_dim"])
    teacher = build_teacher(replace(config, teacher=TowerConfig(open_clip=model), dim=dim))
    torch.save(teacher.state(), checkpoint)
    spec = PreprocessSpec(size=SIZE, fit="crop")
    pixels = np.stack([decode(p.read_bytes(), spec) for p in files[:CALIBRATION]])
    graph = ImageGraph(teacher.image.eval()).eval()
    paths = {name: folder / f"teacher.{name}.onnx" for name in ("fp32", "int8")}
    static, dynamic = folder / "static.onnx", folder / "dynamic.onnx"
    write_onnx(graph, torch.from_numpy(pixels[:2].copy()), paths["fp32"])
    quantize_static(paths["fp32"], static, pixels, "minmax")
    quantize_dynamic(paths["fp32"], dynamic)
    faster = min((static, dynamic), key=lambda path: _seconds(path, pixels))
    print(f"int8: {faster.stem}")
    faster.rename(paths["int8"])
    towers = {}
    golden: dict[str, np.ndarray] = {"pixels": pixels[:4]}
    for name, path in paths.items():
        towers[name] = Variant(file=describe(path, path.name), fingerprint=fingerprint(describe(path, path.name).sha256, spec))
        golden[f"teacher.{name}"] = _open(path)(pixels[:4])
    np.savez(folder / "golden.npz", **golden)
    manifest = EncoderManifest(
        name=model, dim=dim, preprocess=spec, towers={"teacher": towers}, document="teacher.fp32", query="teacher.fp32",
        golden=describe(folder / "golden.npz", "golden.npz"),
    )  # fmt: skip
    (folder / "encoder.json").write_text(manifest.model_dump_json())


def _open(path: Path) -> Any:
    from serving.contract.runtimes import ONNXRUNTIME

    return ONNXRUNTIME.open(path, path.name.split(".")[-2], 1)


def _seconds(path: Path, pixels: np.ndarray) -> float:
    run = _open(path)
    run(pixels[:4])
    began = time.process_time()
    run(pixels)
    return time.process_time() - began


def with_document(source: Path, target: Path, document: str) -> Path:
    """The same encoder version whose products are embedded by another variant."""
    shutil.copytree(source, target)
    manifest = EncoderFolder(source).manifest.model_copy(update={"document": document, "query": document})
    (target / "encoder.json").write_text(manifest.model_dump_json())
    return target


def _links(files: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in files:
        os.link(path, folder / path.name)


def ours(folder: Path, encoder: Path, files: list[Path], key: str) -> float:
    """Seconds of our job over the files."""
    shop = folder / f"shop-{key}"
    _links(files, shop / "images")
    rows = [f"p{n:05d},Product {n},images/{path.name}" for n, path in enumerate(files)]
    (shop / "products.csv").write_text("\n".join(["product_id,title,image", *rows]) + "\n")
    snapshot = take_snapshot(str(shop), str(folder / "snapshots"), key)
    config = EmbedConfig(spark_master=f"local[{CORES}]")
    began = time.perf_counter()
    done = embed_snapshot(snapshot, encoder, "1", str(folder / f"store-{key}"), key, folder / f"work-{key}", config)
    took = time.perf_counter() - began
    if done.embedded_now != len(files):
        raise SystemExit(f"our job made {done.embedded_now} vectors of {len(files)} pictures: {done.summary}")
    return took


def theirs(folder: Path, model: str, checkpoint: Path, files: list[Path], key: str) -> float:
    """Seconds of `clip-retrieval inference` over the files, its workers as many as cores."""
    inputs = folder / f"clip-in-{key}"
    _links(files, inputs)
    command = [
        str(PEER / "clip-retrieval"), "inference", "--input_dataset", str(inputs), "--output_folder", str(folder / f"clip-out-{key}"),
        "--clip_model", f"open_clip:{model}/{checkpoint}", "--input_format", "files", "--enable_text", "False", "--use_jit", "False",
        "--num_prepro_workers", str(CORES), "--batch_size", "32", "--enable_wandb", "False",
    ]  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"clip-retrieval failed: {done.stderr.strip().splitlines()[-1]}")
    took = time.perf_counter() - began
    made = sum(len(np.load(p)) for p in (folder / f"clip-out-{key}" / "img_emb").glob("*.npy"))
    if made != len(files):
        raise SystemExit(f"clip-retrieval made {made} vectors of {len(files)} pictures")
    return took


def agreement(folder: Path, files: list[Path]) -> tuple[float, float]:
    """int8 against fp32: the least cosine, and the share of each picture's ten nearest that are the same."""
    spec = EncoderFolder(folder).manifest.preprocess
    pixels = np.stack([decode(p.read_bytes(), spec) for p in files[:200]])
    one, other = (
        np.concatenate([run(pixels[i : i + 8]) for i in range(0, len(pixels), 8)])
        for run in (_open(folder / f"teacher.{variant}.onnx") for variant in ("fp32", "int8"))
    )
    nearest = [faiss.knn(v, v, 11, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 1:] for v in (one, other)]
    same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(nearest[0].tolist(), nearest[1].tolist(), strict=True)])
    return float((one * other).sum(axis=1).min()), float(same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    if not (PEER / "clip-retrieval").exists():
        sys.exit(f"clip-retrieval is not installed in {PEER.parent}; this file's head says how")
    with TemporaryDirectory() as name:
        folder, n = Path(name), args.images
        files = pictures(folder / "pictures", 2 * n, args.photos)
        encoder(folder / "fp32", args.model, folder / "model.pt", files)
        folders = {"fp32": folder / "fp32", "int8": with_document(folder / "fp32", folder / "int8", "teacher.int8")}
        seconds: dict[str, dict[int, float]] = {}
        for count in (n, 2 * n):
            seconds.setdefault("clip-retrieval", {})[count] = theirs(
                folder, args.model, folder / "model.pt", files[:count], str(count)
            )
            for variant, place in folders.items():
                seconds.setdefault(f"Vitrine {variant}", {})[count] = ours(folder, place, files[:count], f"{variant}-{count}")
            print({k: round(v[count], 1) for k, v in seconds.items()}, f"s for {count} pictures", flush=True)
        cosine, same = agreement(folder / "fp32", files)
    if any(v[2 * n] <= v[n] for v in seconds.values()):
        raise SystemExit(f"a job took no longer for {2 * n} pictures than for {n}: ask for more, or for a quieter machine")
    rates = {k: n / (v[2 * n] - v[n]) for k, v in seconds.items()}
    print(f"\n{args.model}, random weights, {CORES} cores")
    print(f"{'job':18} {'images/s':>9} {'x clip-retrieval':>17} {'s for ' + str(2 * n):>12} {'x from start to end':>20}")
    for k, rate in rates.items():
        whole = seconds["clip-retrieval"][2 * n] / seconds[k][2 * n]
        print(f"{k:18} {rate:9.1f} {rate / rates['clip-retrieval']:17.2f} {seconds[k][2 * n]:12.1f} {whole:20.2f}")
    print(f"int8 to fp32: least cosine {cosine:.4f}, {same:.1%} of the ten nearest the same")
    found = {"model": args.model, "images": n, "seconds": seconds, "images_per_s": rates, "cosine": cosine, "same_nearest": same}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "clip_retrieval.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
