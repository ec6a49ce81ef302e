"""A model repository of the Triton Inference Server for one encoder version: the ONNX backend, and the Python backend beside it."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serving.contract.encoder import EncoderFolder
from serving.contract.manifest import EncoderManifest, Variant
from serving.contract.runtimes import DISABLED_OPTIMIZERS
from serving.versions.encoder_server import FINGERPRINT, model_name
from tasks.errors import VitrineError

MODEL_PY = Path(__file__).with_name("triton_model.py")
GRAPH = "model.onnx"
CONFIG = """\
# Encoder {encoder}, {variant}, as `vitrine encoder repository` wrote it.
name: "{model}"
backend: "{backend}"
max_batch_size: {max_batch}
input [ {{ name: "{taken}" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }} ]
output [ {{ name: "{given}" data_type: TYPE_FP32 dims: [ {dim} ] }} ]
instance_group [ {{ count: {instances} kind: {kind} }} ]
model_warmup [
  {{
    name: "one picture" batch_size: 1
    inputs {{ key: "{taken}" value {{ data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] zero_data: true }} }}
  }}
]
parameters {{ key: "{parameter}" value {{ string_value: "{fingerprint}" }} }}
"""
BATCHING = "dynamic_batching {{ max_queue_delay_microseconds: {delay_us} }}\n"
EXTENDED = "optimization { graph { level: 1 } }\n"
"""ONNX Runtime's ORT_ENABLE_EXTENDED: at ORT_ENABLE_ALL it crashes on transformers in fp16 (docs/decisions/0019)."""
PYTHON = """\
parameters {{ key: "disabled_optimizers" value {{ string_value: "{optimizers}" }} }}
parameters {{ key: "threads" value {{ string_value: "{threads}" }} }}
"""


@dataclass(frozen=True)
class Batching:
    """How a server works: `max_batch` pictures at a time, waiting at most `delay_us` for them, in `instances` of the model.

    `threads`: of ONNX Runtime in each instance of the Python backend.
    """

    max_batch: int = 16
    delay_us: int = 500
    instances: int = 1
    threads: int = 1
    gpu: bool = False


def write_repository(encoders: EncoderFolder, folder: Path, batching: Batching, name: str = "") -> str:
    """Writes `onnxruntime/<model>` and `python/<model>` below `folder`, each with config.pbtxt and files; gives the model's name.

    `name`: the "tower.variant", by default the one that embeds photos. Repositories of other versions in `folder` stay; the same one is
    written anew. Raises ContractError for a damaged version, VitrineError for a text tower.
    """
    manifest = encoders.manifest
    name = name or manifest.query
    if name.startswith("text."):
        raise VitrineError(f"{name}: words are encoded by the replica itself; a server holds an image tower")
    variant = manifest.variant(name)
    graph = encoders.verified_graph(name)
    model = model_name(variant.fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    for backend in ("onnxruntime", "python"):
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=folder) as staging:
            made = Path(staging, model)
            (made / "1").mkdir(parents=True)
            for file in variant.graph_files():
                shutil.copyfile(graph.with_name(file.path), made / "1" / (GRAPH if file == variant.file else file.path))
            if backend == "python":
                shutil.copyfile(MODEL_PY, made / "1" / MODEL_PY.name.removeprefix("triton_"))
            (made / "config.pbtxt").write_text(config(manifest, name, variant, tensors(graph), batching, backend))
            _put(made, folder / backend / model)
    return model


def _put(made: Path, target: Path) -> None:
    """Moves a whole model into the repository, where a server that polls it may be looking."""
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    made.replace(target)


def config(
    manifest: EncoderManifest, name: str, variant: Variant, tensors: tuple[str, str], batching: Batching, backend: str
) -> str:
    """The text of config.pbtxt. A variant that runs alone (dynamic int8: its scales depend on the batch) gets no batches."""
    text = CONFIG.format(
        encoder=manifest.name, variant=name, model=model_name(variant.fingerprint), backend=backend, taken=tensors[0],
        given=tensors[1], size=manifest.preprocess.size, dim=manifest.dim, max_batch=1 if variant.alone else batching.max_batch,
        instances=batching.instances, kind="KIND_GPU" if batching.gpu else "KIND_CPU", parameter=FINGERPRINT,
        fingerprint=variant.fingerprint,
    )  # fmt: skip
    if not variant.alone:
        text += BATCHING.format(delay_us=batching.delay_us)
    if backend == "python":
        return text + PYTHON.format(optimizers=",".join(DISABLED_OPTIMIZERS), threads=batching.threads)
    return text + (EXTENDED if name.endswith(".fp16") else "")


def tensors(graph: Path) -> tuple[str, str]:
    """The names of a graph's input and output."""
    import onnx

    found = onnx.load(str(graph), load_external_data=False).graph
    weights = {w.name for w in found.initializer}
    return next(i.name for i in found.input if i.name not in weights), found.output[0].name
