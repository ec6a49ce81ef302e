"""Files, keys, manifests and encoders: what is damaged or does not belong is named in one sentence."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError, atomic_write, describe, verify
from serving.contract.keys import MAX_KEY, product_key, product_keys, shard_of
from serving.contract.manifest import EncoderManifest, read_manifest
from tests.tiny import tiny_encoder


def test_a_changed_or_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(b"a" * 1000)
    ref = describe(path, "segment")
    assert verify(path, ref) == path
    path.write_bytes(b"a" * 999 + b"b")
    with pytest.raises(ContractError, match="corrupt"):
        verify(path, ref)
    path.write_bytes(b"a" * 10)
    with pytest.raises(ContractError, match="10 bytes where the manifest says 1000"):
        verify(path, ref)
    path.unlink()
    with pytest.raises(ContractError, match="missing"):
        verify(path, ref)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert list(tmp_path.iterdir()) == []
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_keys_are_stable_positive_and_spread_over_shards() -> None:
    keys = product_keys(f"product {n}" for n in range(4000))
    assert keys.dtype == np.int64
    assert keys.min() >= 0
    assert keys.max() <= MAX_KEY
    assert len(np.unique(keys)) == 4000
    assert np.bincount(shard_of(keys, 4)).min() > 900


def test_keys_do_not_change_between_releases() -> None:
    assert product_key("g000") == 2373187065694741454


def test_a_manifest_with_an_unknown_or_missing_field_says_which(tmp_path: Path) -> None:
    tiny_encoder(tmp_path)
    path = tmp_path / "encoder.json"
    text = path.read_text()
    path.write_text(text.replace('"dim"', '"dimension"'))
    with pytest.raises(ContractError, match="dim"):
        read_manifest(path, EncoderManifest)
    path.write_text("{")
    with pytest.raises(ContractError, match="EncoderManifest"):
        read_manifest(path, EncoderManifest)


def test_an_encoder_opens_only_when_it_reproduces_its_golden_outputs(tmp_path: Path) -> None:
    tiny_encoder(tmp_path / "a", seed=0)
    tiny_encoder(tmp_path / "b", seed=1)
    encoder = EncoderFolder(tmp_path / "a").open("student.fp32")
    vectors = encoder.encode(np.zeros((3, 32, 32, 3), np.uint8))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    shutil.copy(tmp_path / "b" / "student.fp32.onnx", tmp_path / "a" / "student.fp32.onnx")
    with pytest.raises(ContractError, match="corrupt"):
        EncoderFolder(tmp_path / "a").open("student.fp32")


def test_golden_outputs_of_another_encoder_are_refused(tmp_path: Path) -> None:
    manifest = tiny_encoder(tmp_path / "a", seed=0)
    tiny_encoder(tmp_path / "b", seed=1)
    shutil.copy(tmp_path / "b" / "golden.npz", tmp_path / "a" / "golden.npz")
    swapped = manifest.model_copy(update={"golden": describe(tmp_path / "a" / "golden.npz", "golden.npz")})
    (tmp_path / "a" / "encoder.json").write_text(swapped.model_dump_json())
    with pytest.raises(ContractError, match="golden outputs are not reproduced"):
        EncoderFolder(tmp_path / "a").open("student.fp32")


def test_an_unknown_variant_lists_what_there_is(tmp_path: Path) -> None:
    manifest = tiny_encoder(tmp_path)
    with pytest.raises(ContractError, match=r"has no 'teacher\.fp32'; it has student\.fp32"):
        manifest.variant("teacher.fp32")
