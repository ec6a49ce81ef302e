"""Int8 quantisation of the query encoder for CPUs: several methods are tried, and one is kept only if retrieval quality holds.

Static: QDQ, per channel, calibrated on catalogue pictures. Dynamic: scales from the batch at hand, so that a vector would depend
on its neighbours; such a graph runs one picture at a time (`Variant.alone`). Add, LayerNorm and Softmax are never quantised
(quantised Adds broke ViTs: cosine 0.86), and what goes into them is not either: matrix products take int8 and give floating point,
which is both faster and nearer to fp32 (docs/benchmarks.md). Weights take seven bits: processors without VNNI add two
products in sixteen bits, which those of eight overflow (docs/decisions/0061).
"""

import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from serving.contract.encoder import Encoder
from serving.contract.files import atomic_write, sha256_file
from serving.contract.graph_check import IN_CHILD, Check
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from tasks.encoder.evaluate.vectors import encode
from tasks.encoder.export.onnx_graph import data_file, save_graph

log = logging.getLogger(__name__)

LEAST_SHARE = 0.99
"""int8 ships when it keeps this share of fp32's mean reciprocal rank (MRR), where nothing else is asked (VITRINE_MIN_INT8_RECALL)."""
LEAST_COSINE = 0.98
"""The same decision where there are no held-out photos: the mean cosine to fp32 on calibration pictures."""
FASTER = 1.2
"""How many times faster a way must be to be preferred to one of better quality; less than that is noise on a shared machine."""
WEIGHT_BITS = 7
"""Below eight: `reduce_range` of ONNX Runtime's quantiser."""
CALIBRATION = 128
CALIBRATION_BATCH = 8
"""Pictures whose activations are in memory at a time: 100 MB each for a ViT-B."""
ROUNDS = 15

Write = Callable[[Path, Path, np.ndarray], None]
"""From the fp32 graph (source, target, calibration pictures) to an int8 one."""


@dataclass(frozen=True)
class QuantizationTrial:
    """One measured int8 method. `mrr` is the mean reciprocal rank of held-out photos (None without any); `ms` is one picture alone."""

    method: str
    cosine: float
    ms: float
    mrr: float | None = None

    @property
    def value(self) -> float:
        return self.cosine if self.mrr is None else self.mrr


@dataclass(frozen=True)
class Choice:
    """The method that ships ("" for none) and why. `slower`: it ships, but fp32 is faster and serves the queries."""

    method: str
    reason: str
    slower: bool = False


def choose(trials: list[QuantizationTrial], fp32: QuantizationTrial, least_share: float = LEAST_SHARE) -> Choice:
    """Of the methods that keep the share `least_share` of quality, the best one, unless another is FASTER times as fast."""
    least = LEAST_COSINE if fp32.mrr is None else least_share * fp32.mrr
    what = "mean cosine to fp32" if fp32.mrr is None else "MRR"
    best = max(trials, key=lambda t: t.value)
    good = [t for t in trials if t.value >= least]
    if not good:
        return Choice(
            "", f"no int8 is kept: the best way ({best.method}) has {what} {best.value:.4f}, at least {least:.4f} is asked"
        )
    quickest = min(good, key=lambda t: t.ms)
    chosen = quickest if best.ms >= FASTER * quickest.ms else best
    slower = chosen.ms > FASTER * fp32.ms
    reason = (
        f"int8 by {chosen.method}: {what} {chosen.value:.4f} (at least {least:.4f}), {fp32.ms / chosen.ms:.1f}x as fast as fp32"
    )
    return Choice(chosen.method, reason + ("; queries stay with fp32" if slower else ""), slower)


def quantize_graph(
    source: Path, target: Path, calibration: np.ndarray, quality: Callable[[Encoder], float] | None, runtime: Runtime, cache: Path,
    check: Check = IN_CHILD, least_share: float = LEAST_SHARE,
) -> tuple[Choice, list[QuantizationTrial], QuantizationTrial]:  # fmt: skip
    """Tries every applicable method on the graph `source`, writes the chosen one to `target`; also returns all trials, and fp32's.

    `quality` measures the mean reciprocal rank in ONNX Runtime; speed is measured in `runtime`, which is to serve. What was measured is
    remembered in the folder `cache`, so that an export that is killed and run again chooses the same. Every graph is opened by
    `check`, in both runtimes, before it is opened here; raises ContractError naming the one that does not open.
    """
    record = cache / f"{sha256_file(source)[:16]}-{runtime.name}-{WEIGHT_BITS}-mrr.json"
    methods = methods_for(source)
    if record.is_file():
        values = json.loads(record.read_text())
        trials, fp32 = [QuantizationTrial(**t) for t in values["trials"]], QuantizationTrial(**values["fp32"])
    else:
        trials, fp32 = _measured(source, methods, calibration, quality, runtime, check)
        with atomic_write(record) as path:
            path.write_text(json.dumps({"trials": [asdict(t) for t in trials], "fp32": asdict(fp32)}))
    choice = choose(trials, fp32, least_share)
    log.info("%s", choice.reason)
    if choice.method:
        methods[choice.method](source, target, calibration)
        _check_int8(_tower(source), target, runtime, calibration, check)
    return choice, trials, fp32


def methods_for(source: Path) -> dict[str, Write]:
    """The int8 methods applicable to a graph, by name. Attention's activation products may stay in floating point."""
    found: dict[str, Write] = {
        "minmax": lambda s, t, c: quantize_static(s, t, c, "minmax"),
        "percentile": lambda s, t, c: quantize_static(s, t, c, "percentile"),
    }
    if has_attention(source):
        found["minmax_attention_fp32"] = lambda s, t, c: quantize_static(s, t, c, "minmax", attention=False)
        found["dynamic"] = lambda s, t, c: quantize_dynamic(s, t)
    return found


def has_attention(source: Path) -> bool:
    """Whether a graph has matrix products of two activations."""
    graph = onnx.load(source, load_external_data=False).graph
    constant = {t.name for t in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
    return any(node.op_type == "MatMul" and node.input[1] not in constant for node in graph.node)


def quantize_static(source: Path, target: Path, calibration: np.ndarray, method: str, attention: bool = True) -> None:
    """Writes an int8 QDQ copy of an image graph, per channel; `calibration` (n, size, size, 3) uint8 sets the ranges."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    options: dict[str, Any] = {
        "MatMulConstBOnly": not attention,
        "CalibStridedMinMax": 1,
        "OpTypesToExcludeOutputQuantization": _floating_outputs(source),
    }
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        prepared = Path(scratch) / "prepared.onnx"
        large = data_file(source).is_file()
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True, save_as_external_data=large)
        quantize_static(
            str(prepared),
            str(target),
            _reader(calibration[:CALIBRATION]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=WEIGHT_BITS < 8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            use_external_data_format=large,
            calibrate_method={"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}[method],
            extra_options=options | ({"CalibPercentile": 99.99} if method == "percentile" else {}),
        )
    _join(target)


def _join(path: Path) -> None:
    """Saves a graph whose weights the quantiser put beside it as one file, if it fits into one."""
    if data_file(path).is_file():
        save_graph(onnx.load(path), path)


def _floating_outputs(source: Path) -> list[str]:
    """The operators that give floating point: matrix products; in a transformer the convolution that cuts patches, too.

    In a convolutional network whole chains stay in int8: there it is what makes it fast.
    """
    kinds = [node.op_type for node in onnx.load(source, load_external_data=False).graph.node]
    transformer = kinds.count("Conv") < kinds.count("MatMul") + kinds.count("Gemm")
    return ["Gemm", "MatMul", "Conv"] if transformer else ["Gemm", "MatMul"]


def quantize_dynamic(source: Path, target: Path) -> None:
    """Writes a dynamically quantised copy (weights of MatMul and Gemm in int8); see the module's docstring."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            str(source),
            str(target),
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=WEIGHT_BITS < 8,
            op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=data_file(source).is_file(),
        )
    _join(target)


def _measured(
    source: Path, methods: dict[str, Write], calibration: np.ndarray, quality: Callable[[Encoder], float] | None, runtime: Runtime,
    check: Check,
) -> tuple[list[QuantizationTrial], QuantizationTrial]:  # fmt: skip
    check(f"{_tower(source)}.fp32", source, runtime, calibration[:2])
    reference = encode(source, calibration)
    with tempfile.TemporaryDirectory() as scratch:
        files = {"fp32": source} | {name: Path(scratch) / f"{name}.onnx" for name in methods}
        for name, write in methods.items():
            write(source, files[name], calibration)
            _check_int8(_tower(source), files[name], runtime, calibration, check)
        ms = _milliseconds(files, calibration, runtime)
        trials = {}
        for name, path in files.items():
            encoder = Encoder(ONNXRUNTIME.open(path, "int8", 2), name, "", ONNXRUNTIME.name, alone=name == "dynamic")
            cosine = float((encode(encoder, calibration) * reference).sum(axis=1).mean())
            trials[name] = QuantizationTrial(name, cosine, ms[name], quality(encoder) if quality else None)
    fp32 = trials.pop("fp32")
    return list(trials.values()), fp32


def _tower(source: Path) -> str:
    """The tower of a graph "tower.fp32.onnx"."""
    return source.name.partition(".")[0]


def _check_int8(tower: str, path: Path, runtime: Runtime, calibration: np.ndarray, check: Check) -> None:
    """Checks an int8 graph in ONNX Runtime, where its golden outputs are made, and in the runtime that is to serve."""
    for each in {r.name: r for r in (ONNXRUNTIME, runtime)}.values():
        check(f"{tower}.int8", path, each, calibration[:2])


def _milliseconds(files: dict[str, Path], pixels: np.ndarray, runtime: Runtime) -> dict[str, float]:
    """Median milliseconds of one picture in one thread, files alternating."""
    sessions = {name: runtime.open(path, "fp32" if name == "fp32" else "int8", 1) for name, path in files.items()}
    spent: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(ROUNDS + 1):
        picture = pixels[number % len(pixels)][None]
        for name, session in sessions.items():
            began = time.perf_counter()
            session(picture)
            if number:  # the first call pays for what is set up lazily
                spent[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in spent.items()}


def _reader(calibration: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Batches of pictures; ONNX Runtime asks for ranges of them, one after the other."""

        def __init__(self) -> None:
            step = CALIBRATION_BATCH
            self.batches = [calibration[i : i + step] for i in range(0, len(calibration) // step * step, step)] or [calibration]
            self.set_range(0, len(self.batches))

        def __len__(self) -> int:
            return len(self.batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.waiting = iter(self.batches[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.waiting, None)
            return None if batch is None else {"input": batch}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences ONNX Runtime's quantiser, which warns through the root logger and prints its thresholds."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
