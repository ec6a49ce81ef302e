"""Preprocess once: whichever path a picture takes, the encoder gets the same pixels to the last bit and gives the same vector."""

import hashlib
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from serving.contract.encoder import EncoderFolder
from serving.contract.manifest import EncoderManifest
from serving.contract.preprocess import ImageRejected, decode
from serving.contract.pyfunc import _load_pyfunc
from serving.contract.runtimes import ONNXRUNTIME, Session
from serving.versions.release import Release
from serving.versions.version_source import FolderSource
from tasks.embed import worker
from tasks.embed.store import SHA_TYPE, EmbeddingStore
from tasks.encoder.data.pixels import cached_pixels
from tasks.encoder.evaluate.vectors import encode
from tasks.encoder.export.mlflow_flavor import write_flavor
from tests.releases import make_release

SAME = 1e-5


def scene(width: int = 160, height: int = 96) -> Image.Image:
    """Left half red, right half blue, a green corner, and noise: any turn, mirror or other scaling shows."""
    pixels = np.random.default_rng(7).integers(0, 60, (height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] += 180
    pixels[:, width // 2 :, 2] += 180
    pixels[: height // 4, : width // 4] = (20, 200, 20)
    return Image.fromarray(pixels)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return encoded(scene(), "JPEG", exif=exif)


def deep() -> bytes:
    return encoded(Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)), "PNG")


def see_through() -> bytes:
    picture = scene().convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return encoded(picture, "PNG")


def moving() -> bytes:
    frames = [scene(), Image.new("RGB", (160, 96), (250, 250, 0))]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


PICTURES: dict[str, Callable[[], bytes]] = {
    "plain.jpg": lambda: encoded(scene(), "JPEG", quality=85),
    "progressive.jpg": lambda: encoded(scene(800, 600), "JPEG", progressive=True),
    "turned.jpg": turned,
    "cmyk.jpg": lambda: encoded(scene().convert("CMYK"), "JPEG"),
    "grey.jpg": lambda: encoded(scene().convert("L"), "JPEG"),
    "palette.png": lambda: encoded(scene().convert("P"), "PNG"),
    "deep.png": deep,
    "see_through.png": see_through,
    "moving.gif": moving,
    "one.png": lambda: encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"),
    "wide.jpg": lambda: encoded(scene(12_000, 40), "JPEG"),
    "web.webp": lambda: encoded(scene(), "WEBP"),
    "scan.tif": lambda: encoded(scene(), "TIFF"),
}


class Recording:
    """ONNX Runtime that keeps what went in and came out."""

    name, format = "onnxruntime", "onnx"

    def __init__(self) -> None:
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []

    def open(self, path: Path, precision: str, threads: int, fingerprint: str = "") -> Session:
        session = ONNXRUNTIME.open(path, precision, threads)

        def run(batch: np.ndarray) -> np.ndarray:
            vectors = session(batch)
            self.calls.append((np.array(batch), vectors))
            return vectors

        return run

    def rows(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` inputs and outputs, batches put together."""
        return np.concatenate([c[0] for c in self.calls])[:count], np.concatenate([c[1] for c in self.calls])[:count]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small release, and a folder of pictures of every kind."""
    folder = tmp_path_factory.mktemp("once")
    make_release(folder)
    (folder / "pictures").mkdir()
    for name, made in PICTURES.items():
        (folder / "pictures" / name).write_bytes(made())
    return folder


@pytest.fixture(scope="module")
def manifest(home: Path) -> EncoderManifest:
    return EncoderFolder(home / "encoders" / "0").manifest


@pytest.fixture(scope="module")
def expected(home: Path, manifest: EncoderManifest) -> tuple[np.ndarray, np.ndarray]:
    """The contract's own pixels, and their vectors one at a time."""
    pixels = np.stack([decode((home / "pictures" / name).read_bytes(), manifest.preprocess) for name in PICTURES])
    encoder = EncoderFolder(home / "encoders" / "0").open(manifest.query)
    return pixels, np.concatenate([encoder.encode(p[None]) for p in pixels])


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_the_spark_workers_path(
    home: Path, manifest: EncoderManifest, expected: tuple[np.ndarray, np.ndarray], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, batch: int,
) -> None:  # fmt: skip
    recording = Recording()
    monkeypatch.setattr(worker, "runtime", lambda name: recording)
    monkeypatch.setattr(worker, "_ENCODERS", {})
    shas = [hashlib.sha256((home / "pictures" / name).read_bytes()).digest() for name in PICTURES]
    pq.write_table(pa.table({"image_sha256": pa.array(shas, SHA_TYPE), "image_uri": list(PICTURES)}), tmp_path / "chunk.parquet")
    config = worker.WorkerConfig(
        str(home / "pictures"), (), str(home / "encoders" / "0"), manifest.document, str(tmp_path / "store"), manifest.dim, "run",
        batch, 1, 2, "",
    )  # fmt: skip
    worker.embed_chunk(str(tmp_path / "chunk.parquet"), config)
    del recording.calls[0]  # the golden inputs
    pixels, vectors = recording.rows(len(PICTURES))
    assert (pixels == expected[0]).all()
    assert np.abs(vectors - expected[1]).max() < SAME
    store = EmbeddingStore(str(tmp_path / "store"), manifest.dim)
    (commit,) = store.commits()
    part = store.part(commit)
    assert part["image_sha256"].to_pylist() == shas
    kept = part["vector"].combine_chunks().flatten().to_numpy().reshape(len(shas), -1)
    assert (kept == vectors.astype(np.float16)).all()


def test_the_path_of_serving(home: Path, expected: tuple[np.ndarray, np.ndarray]) -> None:
    recording, source = Recording(), FolderSource(home / "release")
    index = source.manifest("1")
    release = Release.open("1", index, source.encoder(index), source.fetch, runtime=recording)
    recording.calls.clear()
    asked = [release.encode_photo((home / "pictures" / name).read_bytes()).vector for name in PICTURES]
    pixels, vectors = recording.rows(len(PICTURES))
    assert (pixels == expected[0]).all()
    assert (np.stack(asked) == vectors).all()
    assert np.abs(vectors - expected[1]).max() < SAME


def test_the_path_of_training_and_evaluation(
    home: Path, manifest: EncoderManifest, expected: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    found = cached_pixels(list(PICTURES), str(home / "pictures"), manifest.preprocess, tmp_path, "query")
    assert found.usable.all()
    assert (found.array == expected[0]).all()
    encoder = EncoderFolder(home / "encoders" / "0").open(manifest.query, threads=2)
    assert np.abs(encode(encoder, found.array) - expected[1]).max() < SAME


LOADED = """
import sys
from pathlib import Path
import mlflow, numpy, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
files = sorted(Path(sys.argv[2]).iterdir())
numpy.savez(sys.argv[3], vectors=model.predict(pandas.DataFrame({"image": [f.read_bytes() for f in files]})),
            names=[f.name for f in files])
print(sys.modules["serving.contract.preprocess"].__file__)
"""


@pytest.mark.slow
def test_the_path_of_mlflows_python_function_with_the_code_in_the_version(
    home: Path, manifest: EncoderManifest, expected: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """`mlflow.pyfunc.load_model` gives a replica's vectors from a picture's bytes, in a process that has nothing of ours."""
    version = tmp_path / "version"
    shutil.copytree(home / "encoders" / "0", version)
    write_flavor(version, manifest)
    command = [
        sys.executable,
        "-I",
        "-W",
        "ignore",
        "-c",
        LOADED,
        str(version),
        str(home / "pictures"),
        str(tmp_path / "found.npz"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(version / "code" / "serving" / "contract" / "preprocess.py")
    with np.load(tmp_path / "found.npz") as found:
        order = [found["names"].tolist().index(name) for name in PICTURES]
        assert np.abs(found["vectors"][order] - expected[1]).max() < SAME


def test_a_picture_that_mlflows_python_function_cannot_use_is_named_by_its_place(home: Path) -> None:
    model = _load_pyfunc(str(home / "encoders" / "0"))
    with pytest.raises(ImageRejected, match="image 1: the bytes are not an image in a known format"):
        model.predict({"image": [PICTURES["plain.jpg"](), b"words"]})
