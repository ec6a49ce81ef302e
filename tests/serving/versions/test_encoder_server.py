"""A server as a runtime: golden outputs, fingerprints, answers that are none."""

import re
from pathlib import Path

import numpy as np
import pytest

from serving.contract.encoder import EncoderFolder
from serving.contract.files import ContractError
from serving.settings import ServingSettings
from serving.versions.encoder_server import EncoderServer, EncoderUnavailable, split_address
from serving.versions.encoder_trial import EncoderTrial
from tests.serving.versions.pretended import Pretended, pretend
from tests.tiny import tiny_encoder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    return pretend(monkeypatch)


def test_a_server_is_a_runtime_that_gets_one_picture_a_call(tmp_path: Path, server: Pretended) -> None:
    manifest = tiny_encoder(tmp_path, words=True)
    server.hold(tmp_path)
    folder, runtime = EncoderFolder(tmp_path), EncoderServer("pretended", "", 1.0)
    encoder = folder.open("student.fp32", runtime=runtime)
    size = manifest.preprocess.size
    pixels = np.random.default_rng(3).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    np.testing.assert_allclose(encoder.encode(pixels), folder.open("student.fp32").encode(pixels), atol=1e-6)
    assert set(server.pictures) == {1}
    assert (encoder.runtime, encoder.fingerprint) == ("pretended", manifest.variant("student.fp32").fingerprint)


def test_a_server_without_the_encoder_or_with_another_is_one_sentence(tmp_path: Path, server: Pretended) -> None:
    for seed in (0, 1):
        tiny_encoder(tmp_path / str(seed), seed=seed)
    folder, runtime = EncoderFolder(tmp_path / "0"), EncoderServer("pretended", "", 1.0)
    with pytest.raises(
        ContractError, match=r"pretended holds no model vitrine_[0-9a-f]{16}, this version's encoder \(.*\); load"
    ):
        folder.open("student.fp32", runtime=runtime)
    server.hold(tmp_path / "0")
    name = next(iter(server.models))
    for stated, sentence in (("ab" * 32, "states the encoder with fingerprint abababababab…"), ("", "states no fingerprint")):
        server.models[name] = stated, server.models[name][1]
        with pytest.raises(ContractError, match=rf"pretended {sentence} for its model {name}, where [0-9a-f]{{12}}… is needed"):
            folder.open("student.fp32", runtime=runtime)
    server.hold(tmp_path / "0", graph=tmp_path / "1" / "student.fp32.onnx")
    with pytest.raises(ContractError, match=r"student.fp32: golden outputs are not reproduced by pretended \(least cosine"):
        folder.open("student.fp32", runtime=runtime)


@pytest.mark.parametrize("answer", [np.full((1, 16), np.nan, np.float32), np.zeros((1, 16), np.float32), np.ones(16, np.float64)])
def test_what_is_no_unit_vector_is_no_answer(tmp_path: Path, server: Pretended, answer: np.ndarray) -> None:
    tiny_encoder(tmp_path)
    server.hold(tmp_path)
    encoder = EncoderFolder(tmp_path).open("student.fp32", runtime=EncoderServer("pretended", "", 1.0))
    name = next(iter(server.models))
    server.models[name] = server.models[name][0], lambda batch: answer
    with pytest.raises(EncoderUnavailable, match="pretended does not answer: what it gives is no unit vector"):
        encoder.encode(np.zeros((1, 32, 32, 3), np.uint8))


def test_the_graph_of_a_server_is_opened_in_no_child_process(tmp_path: Path, server: Pretended) -> None:
    checked = []
    check = EncoderTrial(lambda name, *_: checked.append(name))
    for seed in (0, 1):
        tiny_encoder(tmp_path / str(seed), seed=seed, words=True)
        check(EncoderFolder(tmp_path / str(seed)), "student.fp32", EncoderServer("pretended", "", 1.0))
    assert checked == ["text.fp32"]


def test_its_settings_are_read() -> None:
    found = ServingSettings.load({"VITRINE_ENCODER_SERVER": "triton", "VITRINE_ENCODER_ADDRESS": "grpc://t:8001"})
    assert (found.encoder_server, found.encoder_address, found.encoder_timeout_s) == ("triton", "grpc://t:8001", 1.0)


LIKE = "such are like http://host:1"


@pytest.mark.parametrize("between", ["", "@", "/", "?", "%", "/@", "@/", "#", " "])
def test_a_user_in_the_address_of_an_encoder_server_is_told_without_its_password(between: str) -> None:
    with pytest.raises(ValueError, match=r"VITRINE_ENCODER_ADDRESS='http://.*': no user is sent to encoder servers") as raised:
        split_address(f"http://shop:hid{between}den@host:8080", ("http",), LIKE)
    assert not {"hid", "den"} & set(re.findall("hid|den", str(raised.value)))


@pytest.mark.parametrize(
    "address",
    ["", "http://", "http://:1", "http://host:port", "http://host:0", "http://host:99999", "http://[::1:1", "http://ho st:1", "host:1",
     "shop:hidden@host:1", "ftp://shop:hidden@host"],
)  # fmt: skip
def test_an_address_that_no_client_reads_is_one_sentence(address: str) -> None:
    with pytest.raises(ValueError, match=f"^VITRINE_ENCODER_ADDRESS='.*': {LIKE}$") as raised:
        split_address(address, ("http",), LIKE)
    assert "hidden" not in str(raised.value)


def test_an_address_may_have_a_path_and_the_newline_of_a_file() -> None:
    assert split_address("HTTP://host:1/a/\n", ("http",), LIKE).geturl() == "http://host:1/a/"
    assert split_address("http://[::1]:8000", ("http",), LIKE).port == 8000
