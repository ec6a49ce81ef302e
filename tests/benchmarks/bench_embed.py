"""The Spark embedding job against the bare loop: same encoder, same threads, the loop's pictures already decoded in memory.

    python -m tests.benchmarks.bench_embed [--encoder FOLDER | --timm vit_base_patch16_224] [--images 2000] [--out build/bench]

The job runs over n and over 2n pictures; the difference is its steady speed, reading and decoding included, and what is left is its
start. Then 1 % of the pictures change and the job runs again. Prints a table and writes embed.json.
"""

import argparse
import json
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from serving.contract.encoder import EncoderFolder
from serving.contract.files import describe
from serving.contract.manifest import EncoderManifest, Variant, fingerprint
from serving.contract.preprocess import PreprocessSpec, decode
from tasks.catalog.snapshot import take_snapshot
from tasks.embed.job import EmbedConfig, EmbedResult, embed_snapshot
from tests.tiny import tiny_encoder

CORES = 2
SIDE = 500


def draw(path: Path, number: int) -> None:
    """A 500 x 500 JPEG of about 25 KB: coarse colours under soft noise, as a product picture compresses."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.integers(-6, 7, (SIDE, SIDE, 1), dtype=np.int16)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def shop(folder: Path, first: int, count: int) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = ["product_id,title,image"]
    for number in range(first, first + count):
        draw(folder / "images" / f"{number}.jpg", number)
        rows.append(f"p{number},Product {number},images/{number}.jpg")
    (folder / "products.csv").write_text("\n".join(rows) + "\n")
    return folder


def timm_encoder(folder: Path, name: str) -> None:
    """An encoder version of a timm model with random weights: for speed only."""
    import timm
    import torch

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = timm.create_model(name, num_classes=0).eval()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = (image.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.225
            return torch.nn.functional.normalize(self.body(x), dim=-1)

    folder.mkdir()
    spec, file = PreprocessSpec(size=224), folder / "teacher.fp32.onnx"
    pixels = torch.randint(0, 256, (4, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        tower = Tower().eval()
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            tower, (pixels,), str(file), dynamo=True, external_data=False, dynamic_shapes=({0: batch},), input_names=["image"]
        )
        vectors = tower(pixels).numpy()
    np.savez(folder / "golden.npz", **{"pixels": pixels.numpy(), "teacher.fp32": vectors})
    variant = Variant(file=describe(file, file.name), fingerprint=fingerprint(describe(file, file.name).sha256, spec))
    golden = describe(folder / "golden.npz", "golden.npz")
    manifest = EncoderManifest(
        name=name, dim=vectors.shape[1], preprocess=spec, towers={"teacher": {"fp32": variant}}, document="teacher.fp32",
        query="teacher.fp32", golden=golden,
    )  # fmt: skip
    (folder / "encoder.json").write_text(manifest.model_dump_json())


def bare_loop(encoder: Path, shop: Path, batch: int, seconds: float) -> float:
    """Images/s of CORES threads, each with a one-thread session, over batches that were decoded before the clock started."""
    folder = EncoderFolder(encoder)
    spec = folder.manifest.preprocess
    files = sorted((shop / "images").iterdir())[:batch]
    pixels = np.stack([decode(f.read_bytes(), spec) for f in files])
    sessions = [folder.open(folder.manifest.document, 1) for _ in range(CORES)]
    counts = [0] * CORES
    end = time.perf_counter() + seconds

    def loop(number: int) -> None:
        while time.perf_counter() < end:
            sessions[number].encode(pixels)
            counts[number] += len(pixels)

    threads = [threading.Thread(target=loop, args=(n,)) for n in range(CORES)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def decoding(encoder: Path, shop: Path) -> float:
    """Images/s of reading and decoding alone, on one core."""
    spec = EncoderFolder(encoder).manifest.preprocess
    files = sorted((shop / "images").iterdir())[:400]
    started = time.perf_counter()
    for file in files:
        decode(file.read_bytes(), spec)
    return len(files) / (time.perf_counter() - started)


def timed(shop: Path, store: Path, encoder: Path, run_key: str, config: EmbedConfig) -> tuple[float, EmbedResult]:
    taken = take_snapshot(str(shop), str(store / "snapshots"), run_key)
    started = time.perf_counter()
    result = embed_snapshot(taken, encoder, "1", str(store), run_key, store / f"work-{run_key}", config)
    return time.perf_counter() - started, result


def measure(folder: Path, encoder: Path, images: int) -> dict[str, float | str | int]:
    small, large = shop(folder / "small", 0, images), shop(folder / "large", images, 2 * images)
    config = EmbedConfig(spark_master=f"local[{CORES}]")
    timed(shop(folder / "warm", 3 * images, 64), folder / "store-warm", encoder, "warm", config)
    before = bare_loop(encoder, small, config.batch_rows, 15)
    short, _ = timed(small, folder / "store-small", encoder, "n", config)
    long, _ = timed(large, folder / "store-large", encoder, "2n", config)
    bare = (before + bare_loop(encoder, small, config.batch_rows, 15)) / 2  # before and after: the machine may be shared
    for number in range(images, images + 2 * images // 100):
        draw(large / "images" / f"{number}.jpg", 10_000_000 + number)
    again, changed = timed(large, folder / "store-large", encoder, "changed", config)
    if long <= short:
        raise SystemExit(
            f"{images} pictures took {short:.1f} s and twice as many {long:.1f} s: ask for more, or for a quieter machine"
        )
    steady = images / (long - short)
    return {
        "encoder": EncoderFolder(encoder).manifest.name, "images": images, "bare_loop_per_s": bare, "job_steady_per_s": steady,
        "steady_share_of_bare": steady / bare, "job_start_s": short - images / steady, "job_seconds_for_2n": long,
        "decode_per_s_one_core": decoding(encoder, small), "products_per_hour": steady * 3600, "changed_images": changed.embedded_now,
        "seconds_with_1_percent_changed": again,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--timm", default="")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    chosen = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        encoder = chosen.encoder or folder / "encoder"
        if chosen.timm:
            timm_encoder(encoder, chosen.timm)
        elif not chosen.encoder:
            tiny_encoder(encoder)
        found = measure(folder, encoder, chosen.images)
    for key, value in found.items():
        print(f"{key:32} {value:.3f}" if isinstance(value, float) else f"{key:32} {value}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "embed.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
