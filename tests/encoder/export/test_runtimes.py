"""Every runtime answers the same golden test, and the one that cannot is refused in a sentence."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError, describe
from serving.contract.golden_outputs import TOLERANCES
from serving.contract.manifest import EncoderManifest, fingerprint
from serving.contract.runtimes import ONNXRUNTIME, RUNTIMES, Runtime
from tasks.encoder.export.export import check_folder
from tasks.encoder.export.runtimes import TorchScript, runtime
from tasks.errors import SettingsError
from tests.encoder.conftest import Exported

NAMES = (*RUNTIMES, "torch")
GPU = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}


def read_golden(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "golden.npz") as golden:
        return dict(golden)


def variants(manifest: EncoderManifest) -> list[str]:
    return [f"{tower}.{variant}" for tower, found in manifest.towers.items() for variant in found]


def ready(name: str) -> Runtime:
    """The runtime, where this machine has it."""
    if name in GPU and GPU[name] not in onnxruntime.get_available_providers():
        pytest.skip(f"{name}: not on this machine")
    if name == "openvino":
        pytest.importorskip("openvino")
    return runtime(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_runtime_reproduces_the_golden_outputs_of_every_variant_it_runs(exported: Exported, name: str) -> None:
    chosen, version = ready(name), EncoderFolder(exported.folder)
    golden = read_golden(exported.folder)
    for variant in variants(version.manifest):
        if name == "torch" and variant.endswith("int8"):
            with pytest.raises(ContractError, match="no TorchScript file"):
                version.open(variant, runtime=chosen)
            continue
        encoder = version.open(variant, threads=2, runtime=chosen)
        assert encoder.runtime == name
        inputs = golden["tokens" if variant.startswith("text") else "pixels"]
        together = encoder.encode(inputs)
        assert together.flags.owndata or name == "torch", "a remembered vector would keep the memory of a freed session alive"
        assert together.dtype == np.float32
        least = TOLERANCES[variant.partition(".")[2]].min_cosine
        assert (together * golden[variant]).sum(axis=1).min() >= least
        alone = np.concatenate([encoder.encode(inputs[i : i + 1]) for i in range(len(inputs))])
        tolerance = 1e-5 if variant.endswith("fp32") else 5e-3
        assert np.abs(together - alone).max() < tolerance, (name, variant)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_threads_share_a_session(exported: Exported, name: str) -> None:
    encoder = EncoderFolder(exported.folder).open("student.fp32", runtime=ready(name))
    size = exported.config.preprocess.size
    pictures = np.random.default_rng(0).integers(0, 256, (24, 1, size, size, 3), dtype=np.uint8)
    expected = [encoder.encode(p) for p in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(encoder.encode, pictures))
    assert max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True)) < 1e-6


def test_a_runtime_that_is_not_here_or_unknown_is_one_sentence(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    version = EncoderFolder(exported.folder)
    for name, provider in GPU.items():
        if provider not in onnxruntime.get_available_providers():
            with pytest.raises(ContractError, match=rf"{name}: this ONNX Runtime has no {provider}; install the extra gpu"):
                version.open("student.fp32", runtime=runtime(name))
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ContractError, match="openvino is not installed; install the extra openvino, or choose"):
        version.open("student.fp32", runtime=runtime("openvino"))
    with pytest.raises(SettingsError, match="no encoder runtime 'triton'; choose one of onnxruntime, onnxruntime-cuda"):
        runtime("triton")


class Wrong:
    """A runtime that computes something else: the picture upside down."""

    name, format = "wrong", "onnx"

    def open(self, path: Path, precision: str, threads: int, fingerprint: str = "") -> Callable[[np.ndarray], np.ndarray]:
        session = ONNXRUNTIME.open(path, precision, threads)
        return lambda batch: session(np.ascontiguousarray(batch[:, ::-1] if batch.ndim == 4 else batch))


class NotANumber(Wrong):
    """A runtime whose arithmetic overflows."""

    def open(self, path: Path, precision: str, threads: int, fingerprint: str = "") -> Callable[[np.ndarray], np.ndarray]:
        session = ONNXRUNTIME.open(path, precision, threads)
        return lambda batch: session(batch) * np.float32(np.nan)


@pytest.mark.parametrize("wrong", [Wrong(), NotANumber()])
def test_a_runtime_that_computes_something_else_is_refused(exported: Exported, wrong: Runtime) -> None:
    with pytest.raises(ContractError, match=r"student.fp32: golden outputs are not reproduced by wrong \(least cosine"):
        EncoderFolder(exported.folder).open("student.fp32", runtime=wrong)


def future_opset(path: Path) -> None:
    model = onnx.load(path)
    model.opset_import[0].version = 999
    path.write_bytes(model.SerializeToString())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {"opset": future_opset, "truncated": truncate}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_graph_that_a_runtime_cannot_load_is_one_sentence(exported: Exported, tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / "student.fp32.onnx"
    shutil.copy(exported.folder / path.name, path)
    DAMAGES[damage](path)
    if (name, damage) == ("openvino", "opset"):
        ready(name).open(path, "fp32", 1)  # it reads what it knows of a newer opset; the golden outputs decide
        return
    with pytest.raises(ContractError, match=r"student.fp32.onnx: (ONNX Runtime|OpenVINO) cannot load it: \S+") as raised:
        ready(name).open(path, "fp32", 1)
    assert "\n" not in str(raised.value)


def test_a_damaged_torchscript_file_is_one_sentence(exported: Exported, tmp_path: Path) -> None:
    shutil.copy(exported.folder / "student.pt", tmp_path)
    truncate(tmp_path / "student.pt")
    with pytest.raises(ContractError, match=r"student.pt: PyTorch cannot load it: .*") as raised:
        TorchScript().open(tmp_path / "student.pt", "fp32", 1)
    assert "\n" not in str(raised.value)


def rewritten(folder: Path, name: str) -> None:
    """The manifest says again what the file of a variant is: the damage is then inside, not on the way."""
    manifest = EncoderFolder(folder).manifest
    tower, _, variant = name.partition(".")
    file = describe(folder / f"{name}.onnx", f"{name}.onnx")
    values = json.loads(manifest.model_dump_json())
    values["towers"][tower][variant] |= {
        "file": file.model_dump(),
        "fingerprint": fingerprint(file.sha256, manifest.preprocess),
    }
    values["golden"] = describe(folder / "golden.npz", "golden.npz").model_dump()
    (folder / "encoder.json").write_text(json.dumps(values))


def other_weights(folder: Path) -> None:
    shutil.copy(folder / "student.fp32.onnx", folder / "teacher.fp32.onnx")


def other_golden(folder: Path) -> None:
    golden = read_golden(folder)
    golden["teacher.fp32"] = np.roll(golden["teacher.fp32"], 1, axis=0)
    np.savez(folder / "golden.npz", **golden)


def no_golden(folder: Path) -> None:
    golden = read_golden(folder)
    del golden["teacher.fp32"]
    np.savez(folder / "golden.npz", **golden)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "opset": (lambda folder: future_opset(folder / "teacher.fp32.onnx"), "ONNX Runtime cannot load it"),
    "truncated": (lambda folder: truncate(folder / "teacher.fp32.onnx"), "ONNX Runtime cannot load it"),
    "weights": (other_weights, "golden outputs are not reproduced"),
    "golden": (other_golden, "golden outputs are not reproduced"),
    "no golden": (no_golden, "holds no golden outputs of it"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_encoder_folder_that_is_not_what_it_says_does_not_pass_its_check(
    exported: Exported, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(exported.folder, folder)
    check_folder(folder)
    damage, sentence = BROKEN[what]
    damage(folder)
    rewritten(folder, "teacher.fp32")
    with pytest.raises(ContractError, match=sentence) as raised:
        check_folder(folder)
    assert "teacher.fp32" in str(raised.value)
    assert "\n" not in str(raised.value)
