"""Triton's model repository of a version, as files; a real server reads them in tests/encoder_servers."""

import re
from pathlib import Path

import pytest

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError, describe
from serving.contract.manifest import EncoderManifest
from serving.contract.runtimes import DISABLED_OPTIMIZERS
from serving.versions.encoder_server import model_name
from tasks.encoder.servers.model import Batching, ServedModel
from tasks.encoder.servers.triton import config, write_repository
from tasks.errors import VitrineError
from tests.serving.replica.storefront import corrupt
from tests.tiny import tiny_encoder


def field(text: str, pattern: str) -> str:
    """What a pattern finds in config.pbtxt; "" where it is not there."""
    found = re.search(pattern, text)
    return found[1] if found else ""


def test_both_forms_state_the_encoder_and_what_it_takes(tmp_path: Path) -> None:
    manifest = tiny_encoder(tmp_path / "encoder")
    variant, folder = manifest.variant("student.fp32"), EncoderFolder(tmp_path / "encoder")
    model = write_repository(folder, tmp_path / "models", Batching(max_batch=8, delay_us=250, instances=2))
    assert model == model_name(variant.fingerprint)
    for backend in ("onnxruntime", "python"):
        there = tmp_path / "models" / backend / model
        text = (there / "config.pbtxt").read_text()
        assert (there / "1" / "model.onnx").read_bytes() == (folder.folder / variant.file.path).read_bytes()
        assert (there / "1" / "model.py").exists() == (backend == "python")
        assert field(text, r'\nname: "(.*)"') == model
        assert field(text, r'backend: "(.*)"') == backend
        assert field(text, r"max_batch_size: (\d+)") == "8"
        assert field(text, r'input \[ { name: "(image" data_type: TYPE_UINT8 dims: \[ 32, 32, 3 \])')
        assert field(text, r'output \[ { name: "(embedding" data_type: TYPE_FP32 dims: \[ 16 \])')
        assert field(text, r"instance_group \[ { (.*) } \]") == "count: 2 kind: KIND_CPU"
        assert field(text, r"max_queue_delay_microseconds: (\d+)") == "250"
        assert field(text, r"(model_warmup)")
        assert field(text, r'key: "fingerprint" value { string_value: "(.*)" }') == variant.fingerprint
        assert text.count("{") == text.count("}")
    assert field(text, r'key: "disabled_optimizers" value { string_value: "(.*)" }') == ",".join(DISABLED_OPTIMIZERS)


def test_what_is_written_again_is_the_same_and_other_versions_stay(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        tiny_encoder(tmp_path / str(seed), seed=seed)
        folders.append(EncoderFolder(tmp_path / str(seed)))
    models = [write_repository(folder, tmp_path / "models", Batching()) for folder in (*folders, folders[0])]
    assert models[2] == models[0] != models[1]
    for backend in ("onnxruntime", "python"):
        assert sorted(p.name for p in (tmp_path / "models" / backend).iterdir()) == sorted(models[:2])
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["onnxruntime", "python"], "nothing half written is left"


def test_a_variant_whose_scales_depend_on_the_batch_gets_none_and_a_gpu_its_own_kind(tmp_path: Path) -> None:
    manifest = tiny_encoder(tmp_path)

    def text(variant: dict, name: str = "student.fp32", batching: Batching = Batching()) -> str:  # noqa: B008
        changed = manifest.variant("student.fp32").model_copy(update=variant)
        model = ServedModel("vitrine_0", manifest, name, changed, tmp_path / "graph.onnx", "input", "vectors")
        return config(model, batching, "onnxruntime")

    alone = text({"alone": True})
    assert field(alone, r"max_batch_size: (\d+)") == "1"
    assert "dynamic_batching" not in alone
    assert "kind: KIND_GPU" in text({}, batching=Batching(gpu=True))
    assert "optimization { graph { level: 1 } }" in text({}, "teacher.fp16"), "at the highest level ONNX Runtime crashes on it"
    assert "optimization" not in text({})


def test_the_weights_beside_a_graph_are_copied_under_their_own_name(tmp_path: Path) -> None:
    manifest = tiny_encoder(tmp_path / "encoder")
    weights = tmp_path / "encoder" / "weights.bin"
    weights.write_bytes(b"weights")
    changed = manifest.model_dump()
    changed["towers"]["student"]["fp32"]["data"] = describe(weights, weights.name).model_dump()
    (tmp_path / "encoder" / "encoder.json").write_text(EncoderManifest.model_validate(changed).to_json())
    model = write_repository(EncoderFolder(tmp_path / "encoder"), tmp_path / "models", Batching())
    there = tmp_path / "models" / "python" / model / "1"
    assert sorted(p.name for p in there.iterdir()) == ["model.onnx", "model.py", "weights.bin"]


def test_a_text_tower_and_a_damaged_version_are_refused_in_one_sentence(tmp_path: Path) -> None:
    tiny_encoder(tmp_path / "encoder", words=True)
    folder = EncoderFolder(tmp_path / "encoder")
    with pytest.raises(VitrineError, match=r"text.fp32: words are encoded by the replica itself"):
        write_repository(folder, tmp_path / "models", Batching(), "text.fp32")
    with pytest.raises(ContractError, match=r"has no 'student.int8'"):
        write_repository(folder, tmp_path / "models", Batching(), "student.int8")
    corrupt(tmp_path / "encoder" / "student.fp32.onnx")
    with pytest.raises(ContractError, match=r"student.fp32.onnx: sha256 .* the file is corrupt"):
        write_repository(folder, tmp_path / "models", Batching())
    assert not (tmp_path / "models").exists()
