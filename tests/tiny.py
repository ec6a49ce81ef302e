"""A tiny encoder version made without training: for tests that need a real ONNX file and a real manifest, in milliseconds."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.contract.files import atomic_write, describe
from serving.contract.manifest import EncoderManifest, Variant, fingerprint
from serving.contract.preprocess import PreprocessSpec
from serving.contract.runtimes import ONNXRUNTIME

WORDS = ("[UNK]", "red", "green", "blue", "mug", "shoe", "bag", "lamp")


def tiny_encoder(
    folder: Path, dim: int = 16, size: int = 32, seed: int = 0, words: bool = False, teacher: int | None = None
) -> EncoderManifest:
    """Writes encoder.json, student.fp32.onnx and golden.npz: an 8x8 average pool, one random projection, unit length.

    With `words` also a text tower: the mean of one random vector for each of WORDS. With the seed of a `teacher` products are
    embedded by that one, in another space than the student's: no photo finds its product but by chance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = PreprocessSpec(size=size)
    model = folder / "student.fp32.onnx"
    onnx.save(_graph(dim, size, seed), model)
    print_ = fingerprint(describe(model, model.name).sha256, spec)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    golden = {"pixels": pixels, "student.fp32": ONNXRUNTIME.open(model, "fp32", 1)(pixels)}
    towers = {"student": {"fp32": Variant(file=describe(model, model.name), fingerprint=print_)}}
    document = "student.fp32"
    if teacher is not None:
        document, path = "teacher.fp32", folder / "teacher.fp32.onnx"
        onnx.save(_graph(dim, size, teacher), path)
        file = describe(path, path.name)
        towers["teacher"] = {"fp32": Variant(file=file, fingerprint=fingerprint(file.sha256, spec))}
        golden[document] = ONNXRUNTIME.open(path, "fp32", 1)(pixels)
    tokenizer = None
    if words:
        path = folder / "text.fp32.onnx"
        onnx.save(_text_graph(dim, seed), path)
        text = Variant(file=describe(path, path.name), fingerprint=fingerprint(describe(path, path.name).sha256, spec))
        towers["text"] = {"fp32": text}
        golden["tokens"] = np.arange(len(WORDS), dtype=np.int64).reshape(4, 2)
        golden["text.fp32"] = ONNXRUNTIME.open(path, "fp32", 1)(golden["tokens"])
        _tokenizer(folder / "tokenizer.json")
        tokenizer = describe(folder / "tokenizer.json", "tokenizer.json")
    np.savez(folder / "golden.npz", **golden)
    manifest = EncoderManifest(
        name="tiny",
        dim=dim,
        preprocess=spec,
        towers=towers,
        tokenizer=tokenizer,
        document=document,
        query="student.fp32",
        golden=describe(folder / "golden.npz", "golden.npz"),
    )
    with atomic_write(folder / "encoder.json") as path:
        path.write_text(json.dumps(manifest.model_dump(), indent=1))
    return manifest


def _graph(dim: int, size: int, seed: int) -> onnx.ModelProto:
    cells = 8
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((cells * cells * 3, dim)).astype(np.float32)
    step = size // cells
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("Sub", ["unit", "half"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["pooled"], kernel_shape=[step, step], strides=[step, step]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=1, p=2),
    ]
    constants = {"scale": np.float32(255), "half": np.float32(0.45), "weight": weight}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _text_graph(dim: int, seed: int) -> onnx.ModelProto:
    table = np.random.default_rng(seed + 1000).standard_normal((len(WORDS), dim)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input"], ["words"], axis=0),
        helper.make_node("ReduceMean", ["words", "axes"], ["mean"], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["embedding"], axis=1, p=2),
    ]
    constants = {"table": table, "axes": np.array([1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "tiny text",
        [helper.make_tensor_value_info("input", TensorProto.INT64, ["n", "context"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path))
