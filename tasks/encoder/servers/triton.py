"""A model repository of the Triton Inference Server for one encoder version: the ONNX backend, and the Python backend beside it."""

import shutil
import tempfile
from pathlib import Path

from serving.contract.encoder import EncoderFolder
from serving.contract.runtimes import DISABLED_OPTIMIZERS
from serving.versions.encoder_server import FINGERPRINT
from tasks.encoder.servers.model import Batching, ServedModel, served_model

MODEL_PY = Path(__file__).with_name("triton_model.py")
CONFIG = """\
# Encoder {encoder}, {variant}, as `vitrine encoder repository` wrote it.
name: "{model}"
backend: "{backend}"
max_batch_size: {max_batch}
input [ {{ name: "{input}" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {dim} ] }} ]
instance_group [ {{ count: {instances} kind: {kind} }} ]
model_warmup [
  {{
    name: "one picture" batch_size: 1
    inputs {{ key: "{input}" value {{ data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] zero_data: true }} }}
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


def write_repository(encoders: EncoderFolder, folder: Path, batching: Batching, variant: str = "") -> str:
    """Writes `onnxruntime/<model>` and `python/<model>` below `folder`, each with config.pbtxt and files; gives the model's name.

    Repositories of other versions in `folder` stay; the same one is written anew. Raises as `served_model` does.
    """
    model = served_model(encoders, variant)
    folder.mkdir(parents=True, exist_ok=True)
    for backend in ("onnxruntime", "python"):
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=folder) as staging:
            made = Path(staging, model.name)
            (made / "1").mkdir(parents=True)
            for name, path in model.files().items():
                shutil.copyfile(path, made / "1" / name)
            if backend == "python":
                shutil.copyfile(MODEL_PY, made / "1" / "model.py")
            (made / "config.pbtxt").write_text(config(model, batching, backend))
            _put(made, folder / backend / model.name)
    return model.name


def config(model: ServedModel, batching: Batching, backend: str) -> str:
    """The text of config.pbtxt. A variant that runs alone gets no batches."""
    text = CONFIG.format(
        encoder=model.manifest.name, variant=model.variant_name, model=model.name, backend=backend, input=model.input_name,
        output=model.output_name, size=model.manifest.preprocess.size, dim=model.manifest.dim, max_batch=model.batch(batching),
        instances=batching.instances, kind="KIND_GPU" if batching.gpu else "KIND_CPU", parameter=FINGERPRINT,
        fingerprint=model.variant.fingerprint,
    )  # fmt: skip
    if not model.variant.alone:
        text += BATCHING.format(delay_us=batching.delay_us)
    if backend == "python":
        return text + PYTHON.format(optimizers=",".join(DISABLED_OPTIMIZERS), threads=batching.threads)
    return text + (EXTENDED if model.variant_name.endswith(".fp16") else "")


def _put(made: Path, target: Path) -> None:
    """Moves a whole model into the repository, where a server that polls it may be looking; what was there goes with the staging folder."""
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        target.replace(made.parent / "replaced")
    made.replace(target)
