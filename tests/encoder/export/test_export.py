"""The exported folder: what serving opens, and that its vectors are PyTorch's at any batch size."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError
from serving.contract.runtimes import ONNXRUNTIME
from tasks.catalog.snapshot import Snapshot
from tasks.encoder.evaluate.vectors import encode
from tasks.encoder.export.export import export_encoder
from tasks.encoder.export.onnx_graph import ImageGraph
from tasks.encoder.train.tower_store import restore_student, restore_teacher
from tests.encoder.conftest import Exported
from tests.graphs import open_here

EXPORT = """
import sys, time
from pathlib import Path
from tasks.encoder.export.export import export_encoder
from tasks.encoder.presets import preset
from tasks.encoder.train.student import distil_student
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.loop import no_log
from tests.graphs import open_here
uri, work, config = sys.argv[1], Path(sys.argv[2]), preset("tiny")
teacher = train_teacher(uri, config, work, no_log)
def stay(name, *given):
    open_here(name, *given)
    if name.startswith("student"):
        time.sleep(600)
export_encoder(uri, teacher, distil_student(uri, teacher, config, work, no_log), config, work, Path(sys.argv[3]), check=stay)
"""


def pictures(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_the_folder_is_an_encoder_version(exported: Exported) -> None:
    opened = EncoderFolder(exported.folder)
    manifest = opened.manifest
    assert manifest == exported.manifest
    assert manifest.document == "teacher.fp32"
    assert manifest.query in ("student.int8", "student.fp32")
    assert set(manifest.towers) == {"teacher", "student", "text"}
    assert manifest.recipe["alpha"] == exported.config.alpha
    names = {"encoder.json", "golden.npz", "tokenizer.json", "training.json", "card.md", "MLmodel", "code"}
    names |= {"requirements.txt", "python_env.yaml", "teacher.pt", "student.pt", "text.pt"} | {
        f"{t}.{v}.onnx" for t, variants in manifest.towers.items() for v in variants
    }
    assert {p.name for p in exported.folder.iterdir()} == names
    for tower, variants in manifest.towers.items():
        for variant in variants:
            opened.open(f"{tower}.{variant}")


@pytest.mark.parametrize("name", ["teacher.fp32", "student.fp32"])
def test_onnx_gives_what_pytorch_gives(exported: Exported, name: str) -> None:
    if name.startswith("teacher"):
        encoder = restore_teacher(exported.teacher, exported.config).image
    else:
        encoder = restore_student(exported.student, exported.config)
    pixels = pictures(8, exported.config.preprocess.size)
    with torch.no_grad():
        expected = ImageGraph(encoder)(torch.from_numpy(pixels)).numpy()
    found = EncoderFolder(exported.folder).open(name).encode(pixels)
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    assert found.dtype == np.float32


@pytest.mark.parametrize("name", ["teacher.fp32", "student.fp32", "student.int8"])
def test_a_vector_does_not_depend_on_its_neighbours(exported: Exported, name: str) -> None:
    opened = EncoderFolder(exported.folder)
    if name not in {f"{t}.{v}" for t, variants in opened.manifest.towers.items() for v in variants}:
        pytest.skip("this version ships without int8")
    encoder, pixels = opened.open(name), pictures(70, exported.config.preprocess.size)
    alone = np.concatenate([encoder.encode(pixels[i : i + 1]) for i in range(70)])
    for batch in (7, 32, 70):
        together = np.concatenate([encoder.encode(pixels[i : i + batch]) for i in range(0, 70, batch)])
        assert np.abs(together - alone).max() < 1e-5
    assert np.abs(encode(encoder, pixels) - alone).max() < 1e-5


def test_each_graph_is_one_file_of_the_stated_opset_that_takes_bytes(exported: Exported) -> None:
    for path in exported.folder.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert not any(t.external_data for t in model.graph.initializer)
        assert {o.version for o in model.opset_import if o.domain == ""} == {18}
        taken = model.graph.input[0].type.tensor_type
        expected = onnx.TensorProto.INT64 if path.name.startswith("text") else onnx.TensorProto.UINT8
        assert taken.elem_type == expected
        assert taken.shape.dim[0].dim_param


def test_the_text_tower_shares_the_space(exported: Exported) -> None:
    golden = np.load(exported.folder / "golden.npz")
    assert golden["tokens"].dtype == np.int64
    assert golden["text.fp32"].shape[1] == golden["teacher.fp32"].shape[1] == exported.manifest.dim
    assert np.abs(np.linalg.norm(golden["text.fp32"], axis=1) - 1).max() < 1e-5


def test_an_opset_the_runtime_lacks_is_one_sentence(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.folder / "student.fp32.onnx")
    model.opset_import[0].version = 999
    (tmp_path / "future.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ContractError, match=r"future.onnx: ONNX Runtime cannot load it: .*") as raised:
        ONNXRUNTIME.open(tmp_path / "future.onnx", "fp32", 1)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_no_version_and_is_made_again(
    snapshot: Snapshot, exported: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    command = [sys.executable, "-c", EXPORT, snapshot.uri, str(exported.work), str(folder)]
    process = subprocess.Popen(command, env=dict(os.environ, PYTHONPATH=".", OMP_NUM_THREADS="1"))
    try:
        while not (folder / "student.fp32.onnx").exists():  # as long as it takes: pytest's own timeout ends the test
            assert process.poll() is None, "the export ended before it could be killed"
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ContractError, match=r"encoder\.json"):
        EncoderFolder(folder)
    export_encoder(snapshot.uri, exported.teacher, exported.student, exported.config, exported.work, folder, check=open_here)
    assert {p.name for p in folder.iterdir()} == {p.name for p in exported.folder.iterdir()}
    for name in ("teacher.fp32.onnx", "student.fp32.onnx", "text.fp32.onnx", "tokenizer.json"):
        assert (folder / name).read_bytes() == (exported.folder / name).read_bytes()
