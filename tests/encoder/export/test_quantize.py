"""int8: which way is chosen, that a graph with attention has more ways, and that a choice is made once."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from serving.contract.encoder import Encoder
from serving.contract.runtimes import ONNXRUNTIME
from tasks.encoder.evaluate.vectors import encode
from tasks.encoder.export import quantize
from tasks.encoder.export.onnx_graph import write_half, write_onnx
from tasks.encoder.export.quantize import (
    Choice,
    choose,
    has_attention,
    methods_for,
    quantize_graph,
    quantize_static,
)
from tasks.encoder.export.quantize import (
    QuantizationTrial as Trial,
)
from tests.encoder.conftest import Exported

SIZE = 16


class Attending(nn.Module):
    """A tiny ViT: patches of 4 x 4, one head of attention, unit vectors of 8 numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 8)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patches(pixels.permute(0, 3, 1, 2).float() / 255.0).flatten(2).transpose(1, 2)
        attention = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1)
        x = x + self.out(attention @ self.v(x))
        return nn.functional.normalize(self.head(x.mean(1)), dim=-1)


def pictures(n: int = 24) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "fp32.onnx"
    write_onnx(Attending().eval(), torch.from_numpy(pictures(2)), path)
    return path


FP32 = Trial("fp32", 1.0, 10.0, 0.90)


@pytest.mark.parametrize(
    ("trials", "fp32", "method", "slower"),
    [
        (
            [Trial("minmax", 0.99, 5.0, 0.895), Trial("percentile", 0.99, 5.0, 0.899)],
            FP32,
            "percentile",
            False,
        ),
        ([Trial("minmax", 0.99, 5.0, 0.895), Trial("dynamic", 0.99, 7.0, 0.900)], FP32, "minmax", False),
        ([Trial("minmax", 0.99, 6.0, 0.895), Trial("dynamic", 0.99, 7.0, 0.900)], FP32, "dynamic", False),
        ([Trial("minmax", 0.99, 1.0, 0.880), Trial("dynamic", 0.99, 9.0, 0.893)], FP32, "dynamic", False),
        ([Trial("minmax", 0.99, 1.0, 0.880), Trial("dynamic", 0.99, 9.0, 0.890)], FP32, "", False),
        ([Trial("minmax", 0.99, 13.0, 0.900)], FP32, "minmax", True),
        (
            [Trial("minmax", 0.979, 1.0), Trial("percentile", 0.981, 1.0)],
            Trial("fp32", 1.0, 10.0),
            "percentile",
            False,
        ),
        ([Trial("minmax", 0.979, 1.0)], Trial("fp32", 1.0, 10.0), "", False),
    ],
)
def test_the_best_way_ships_unless_another_good_one_is_much_faster(
    trials: list[Trial], fp32: Trial, method: str, slower: bool
) -> None:
    found = choose(trials, fp32)
    assert (found.method, found.slower) == (method, slower)
    assert (method or "no int8 is kept") in found.reason


def test_a_graph_with_attention_may_leave_it_in_floating_point(graph: Path, exported: Exported) -> None:
    assert has_attention(graph)
    assert set(methods_for(graph)) == {"minmax", "percentile", "minmax_attention_fp32", "dynamic"}
    assert set(methods_for(exported.folder / "student.fp32.onnx")) == {"minmax", "percentile"}


def test_every_way_stays_near_fp32_and_add_and_softmax_stay_exact(graph: Path, tmp_path: Path) -> None:
    expected = encode(graph, pictures())
    for name, write in methods_for(graph).items():
        path = tmp_path / f"{name}.onnx"
        write(graph, path, pictures())
        encoder = Encoder(ONNXRUNTIME.open(path, "int8", 1), name, "", "onnxruntime", alone=name == "dynamic")
        assert (encode(encoder, pictures()) * expected).sum(axis=1).min() > 0.95, name
        nodes = onnx.load(path).graph.node
        made = {o: n.op_type for n in nodes for o in n.output}
        if name != "dynamic":
            fed = {n.op_type: {made.get(i) for i in n.input} for n in nodes}
            assert "DequantizeLinear" in fed["MatMul"] | fed.get("Gemm", set())
            assert "DequantizeLinear" not in fed["Softmax"]


def test_weights_take_seven_bits_so_that_no_processor_overflows(graph: Path, exported: Exported, tmp_path: Path) -> None:
    for name, write in methods_for(graph).items():
        write(graph, tmp_path / f"{name}.onnx", pictures())
    for path in (*tmp_path.glob("*.onnx"), exported.folder / "student.int8.onnx"):
        tensors = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
        weights = [t for t in tensors if t.dtype == np.int8 and t.ndim > 1]
        assert weights, path.name
        assert max(int(np.abs(w.astype(np.int16)).max()) for w in weights) == 64, path.name


def test_dynamic_scales_follow_the_batch_so_such_a_graph_runs_alone(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    methods_for(graph)["dynamic"](graph, path, pictures())
    session = ONNXRUNTIME.open(path, "int8", 1)
    mixed = np.concatenate([pictures(3), np.full((1, SIZE, SIZE, 3), 255, np.uint8)])
    alone = np.concatenate([session(p[None]) for p in mixed])
    assert np.abs(session(mixed) - alone).max() > 1e-5
    encoder = Encoder(session, "student.int8", "", "onnxruntime", alone=True)
    assert np.abs(encoder.encode(mixed) - alone).max() == 0


def test_an_int8_that_loses_recall_is_not_written_and_a_choice_is_made_once(graph: Path, tmp_path: Path) -> None:
    calls: list[str] = []

    def recall(encoder: Encoder) -> float:
        calls.append(encoder.name)
        return 0.9 if encoder.name == "fp32" else 0.5

    target = tmp_path / "int8.onnx"
    choice, trials, fp32 = quantize_graph(graph, target, pictures(), recall, ONNXRUNTIME, tmp_path / "kept")
    assert choice.method == ""
    assert "MRR 0.5000, at least 0.8910" in choice.reason
    assert not target.exists()
    assert set(calls) == {"fp32", *methods_for(graph)}
    again = quantize_graph(graph, target, pictures(), recall, ONNXRUNTIME, tmp_path / "kept")
    assert again == (choice, trials, fp32)
    assert len(calls) == 1 + len(methods_for(graph))


def test_the_chosen_way_gives_the_same_bytes_again(graph: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        quantize_static(graph, tmp_path / name, pictures(), "minmax")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert isinstance(choose([FP32], FP32), Choice)
    assert quantize.LEAST_SHARE == 0.99


def test_the_share_of_recall_that_is_asked_decides_whether_int8_ships() -> None:
    trial = Trial("minmax", 0.99, 5.0, 0.97 * 0.90)
    assert choose([trial], FP32).method == ""
    assert choose([trial], FP32, 0.95).method == "minmax"
    assert choose([trial], FP32, 0.98).method == ""


def test_half_precision_keeps_the_ends_exact(graph: Path, tmp_path: Path) -> None:
    half = tmp_path / "fp16.onnx"
    write_half(graph, half)
    model = onnx.load(half)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    found = encode(half, pictures())
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    assert (found * encode(graph, pictures())).sum(axis=1).min() > 0.9999
