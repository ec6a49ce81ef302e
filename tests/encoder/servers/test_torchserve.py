"""TorchServe's model archive of a version, and its handler; a real server runs both in tests/encoder_servers."""

import io
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from serving.contract.encoder import EncoderFolder
from serving.versions.encoder_server import model_name
from tasks.encoder.servers.model import Batching, ServedModel
from tasks.encoder.servers.torchserve import _config, write_archive
from tests.tiny import tiny_encoder


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def unpacked(folder: Path, batching: Batching = Batching()) -> Path:  # noqa: B008
    """The archive of a tiny encoder, unpacked."""
    tiny_encoder(folder / "encoder")
    model = write_archive(EncoderFolder(folder / "encoder"), folder / "store", batching)
    with ZipFile(folder / "store" / f"{model}.mar") as archive:
        archive.extractall(folder / "model")
    return folder / "model"


def handler(folder: Path) -> Any:
    """The handler as TorchServe loads it."""
    spec = spec_from_file_location("torchserve_handler", folder / "torchserve_handler.py")
    assert spec is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    made = module.EncoderHandler()
    made.initialize(SimpleNamespace(system_properties={"model_dir": str(folder)}))
    return made


def test_an_archive_names_its_handler_and_how_batches_are_made(tmp_path: Path) -> None:
    there = unpacked(tmp_path, Batching(max_batch=4, delay_us=2600, instances=2))
    fingerprint = EncoderFolder(tmp_path / "encoder").manifest.variant("student.fp32").fingerprint
    manifest = json.loads((there / "MAR-INF" / "MANIFEST.json").read_text())["model"]
    assert manifest["modelName"] == model_name(fingerprint)
    assert {manifest[part] for part in ("handler", "serializedFile", "configFile")} <= {p.name for p in there.iterdir()}
    assert (there / "model-config.yaml").read_text().splitlines() == [
        "minWorkers: 2", "maxWorkers: 2", "batchSize: 4", "maxBatchDelay: 3"
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "store").iterdir()] == [f"{model_name(fingerprint)}.mar"]


def test_a_variant_whose_scales_depend_on_the_batch_gets_none(tmp_path: Path) -> None:
    manifest = tiny_encoder(tmp_path)
    variant = manifest.variant("student.fp32").model_copy(update={"alone": True})
    model = ServedModel("vitrine_0", manifest, "student.int8", variant, tmp_path / "graph.onnx", "input", "vectors")
    assert "batchSize: 1\n" in _config(model, Batching(max_batch=16))


def test_the_handler_gives_each_picture_of_a_batch_its_own_vector_and_states_the_encoder(tmp_path: Path) -> None:
    served = handler(unpacked(tmp_path))
    encoder = EncoderFolder(tmp_path / "encoder").open("student.fp32")
    pixels = np.random.default_rng(4).integers(0, 256, (3, 1, 32, 32, 3), dtype=np.uint8)
    rows = [{"body": bytearray(npy(pixels[0]))}, {"body": b""}, {"data": npy(pixels[1])}, {"body": npy(pixels[2])}]
    answers = served.handle(rows, None)
    assert answers.pop(1).decode() == encoder.fingerprint
    vectors = [np.load(io.BytesIO(answer)) for answer in answers]
    np.testing.assert_allclose(np.concatenate(vectors), encoder.encode(np.concatenate(pixels)), atol=1e-6)
    assert served.handle([{}], None) == [encoder.fingerprint.encode()]


class Context:
    """Of TorchServe's, what a handler sets by request."""

    def __init__(self) -> None:
        self.status: dict[int, int] = {}

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        self.status[idx] = code


def test_one_bad_picture_of_a_batch_fails_alone(tmp_path: Path) -> None:
    served, context = handler(unpacked(tmp_path)), Context()
    pixels = np.random.default_rng(4).integers(0, 256, (2, 1, 32, 32, 3), dtype=np.uint8)
    archive = io.BytesIO()
    np.savez(archive, pixels[0])
    bad = [
        b"no array", npy(pixels[0])[:-1], archive.getvalue(), npy(np.array([{}])[:0].astype(object)), npy(pixels[0].astype(np.float32)),
        npy(pixels[0][:, :31]), npy(np.concatenate(pixels)), npy(pixels[:0]),
    ]  # fmt: skip
    bodies = [npy(pixels[0]), *bad, b"", npy(pixels[1])]
    answers = served.handle([{"body": body} for body in bodies], context)
    assert context.status == dict.fromkeys(range(1, len(bad) + 1), 400)
    assert all(answer.startswith(b"not a picture: ") for answer in answers[1 : len(bad) + 1])
    assert b"uint8 of shape (1, 31, 32, 3), where uint8 of shape (1, 32, 32, 3) is taken" in answers[6]
    vectors = np.concatenate([np.load(io.BytesIO(answers[place])) for place in (0, -1)])
    expected = EncoderFolder(tmp_path / "encoder").open("student.fp32").encode(np.concatenate(pixels))
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert served.handle([{"body": b"no array"}], Context())[0].startswith(b"not a picture")


def test_the_handler_needs_nothing_of_ours(tmp_path: Path) -> None:
    text = (unpacked(tmp_path) / "torchserve_handler.py").read_text()
    names = {line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
    settings = tmp_path / "model" / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"gpu": True}))
    with pytest.raises(RuntimeError, match="this ONNX Runtime has no CUDAExecutionProvider"):
        handler(tmp_path / "model")
