"""Writes a trained tower as an ONNX graph, its half-precision copy, and TorchScript."""

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from serving.contract.files import sha256_file
from tasks.encoder.train.towers import ImageEncoder

OPSET = 18
LARGEST_BYTES = 2**31 - 2**26
"""Weights of more bytes lie beside their graph: protobuf ends at 2 GiB, and the graph itself wants some of it."""
DATA_SHA256 = "data_sha256"
"""The graph's note of the sha256 of its weights, where they lie beside it: so its own bytes, and its fingerprint, stand for both."""

log = logging.getLogger(__name__)


class ImageGraph(nn.Module):
    """The exported module: pixels (n, size, size, 3) uint8 RGB to unit vectors (n, dim) float32."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0)


def write_onnx(module: nn.Module, example: Tensor, path: Path) -> None:
    """Writes an ONNX graph with dynamic batch size, input `input`, output `vectors`; see `save_graph`.

    The exporter's notes (stack traces, with the paths of this machine) are left out: equal weights give equal bytes, wherever.
    """
    large = sum(t.numel() * t.element_size() for t in module.state_dict().values()) > LARGEST_BYTES
    with warnings.catch_warnings():  # the exporter warns about its own dependencies
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["vectors"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            external_data=large,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=large)
    model = onnx.load(path)
    for notes in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del notes.metadata_props[:]
    save_graph(model, path)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Writes a graph with its weights in one file; those of more than LARGEST_BYTES to `data_file(path)` beside it."""
    data_file(path).unlink(missing_ok=True)
    if weight_bytes(model) <= LARGEST_BYTES:
        onnx.save(model, path)
        return
    onnx.save(model, path, save_as_external_data=True, location=data_file(path).name, size_threshold=1024)
    graph = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(graph, {DATA_SHA256: sha256_file(data_file(path))})
    onnx.save(graph, path)


def data_file(path: Path) -> Path:
    """Where the weights of a large graph lie."""
    return path.with_name(f"{path.name}.data")


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of a graph's weights, which must be loaded."""
    return sum(len(t.raw_data) for t in model.graph.initializer)


def write_half(source: Path, target: Path) -> None:
    """Converts an ONNX graph to float16 weights and arithmetic; input conversion and final normalisation stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    names = [node.op_type for node in model.graph.node]
    last_norm = len(names) - 1 - names[::-1].index("ReduceL2")
    exact = [node.name for node in model.graph.node[last_norm:]]
    (output,) = (value.name for value in model.graph.output)
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights below float16's smallest number become it, one warning each
        large = weight_bytes(model) > LARGEST_BYTES  # shapes are inferred on the whole graph, which protobuf then refuses
        half = convert_float_to_float16(model, keep_io_types=True, node_block_list=exact, disable_shape_infer=large)
    _without_casts(half.graph, set(exact), output)
    save_graph(half, target)


def _without_casts(graph: onnx.GraphProto, exact_nodes: set[str], output: str) -> None:
    """Removes redundant casts that the converter inserts around nodes kept in float32."""
    made = {name: node for node in graph.node for name in node.output}
    for outer in [node for node in graph.node if node.op_type == "Cast"]:
        inner = made.get(outer.input[0])
        source = made.get(inner.input[0]) if inner is not None and inner.op_type == "Cast" else None
        if inner is None or source is None or source.name not in exact_nodes or outer.attribute[0].i != onnx.TensorProto.FLOAT:
            continue
        exact, back = inner.input[0], outer.output[0]
        graph.node.remove(outer)
        kept, gone = (back, exact) if back == output else (exact, back)  # the graph's output keeps its name
        for node in graph.node:
            node.input[:] = [kept if name == gone else name for name in node.input]
            node.output[:] = [kept if name == gone else name for name in node.output]
    used = {name for node in graph.node for name in node.input} | {output}
    for node in [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in used]:
        graph.node.remove(node)


def write_torchscript(module: nn.Module, example: Tensor, path: Path) -> None:
    """Writes the same graph as TorchScript (TorchServe, Triton's libtorch backend), with dynamic batch size."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns at every shape it fixes: parity is checked instead
        traced = torch.jit.trace(module.eval(), example, check_trace=False)
        torch.jit.save(traced, str(path))
