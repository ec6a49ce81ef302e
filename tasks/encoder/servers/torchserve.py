"""A model archive (.mar) for TorchServe: the ONNX graph and a handler that runs it in ONNX Runtime."""

import json
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

from serving.contract.encoder import EncoderFolder
from serving.contract.files import atomic_write
from serving.contract.runtimes import DISABLED_OPTIMIZERS
from serving.versions.encoder_server import FINGERPRINT
from tasks.encoder.servers.model import GRAPH, Batching, ServedModel, served_model

HANDLER = Path(__file__).with_name("torchserve_handler.py")
MODEL_CONFIG = """\
minWorkers: {instances}
maxWorkers: {instances}
batchSize: {batch}
maxBatchDelay: {delay_ms}
"""


def write_archive(encoders: EncoderFolder, folder: Path, batching: Batching, variant: str = "") -> str:
    """Writes `<model>.mar` into `folder`, TorchServe's model store; gives the model's name. Raises as `served_model` does."""
    model = served_model(encoders, variant)
    with atomic_write(folder / f"{model.name}.mar") as path, ZipFile(path, "w", ZIP_STORED) as archive:
        for name, file in model.files().items():
            archive.write(file, name)
        archive.write(HANDLER, HANDLER.name)
        archive.writestr("settings.json", json.dumps(_settings(model, batching)))
        archive.writestr("model-config.yaml", _config(model, batching))
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(_manifest(model)))
    return model.name


def _settings(model: ServedModel, batching: Batching) -> dict[str, object]:
    """What the handler reads."""
    return {
        FINGERPRINT: model.variant.fingerprint, "graph": GRAPH, "input": model.input_name, "output": model.output_name,
        "threads": batching.threads, "gpu": batching.gpu, "disabled_optimizers": DISABLED_OPTIMIZERS,
    }  # fmt: skip


def _config(model: ServedModel, batching: Batching) -> str:
    """TorchServe's settings of the model: it counts its delay in whole milliseconds."""
    delay_ms = max(1, round(batching.delay_us / 1000))
    return MODEL_CONFIG.format(instances=batching.instances, batch=model.batch(batching), delay_ms=delay_ms)


def _manifest(model: ServedModel) -> dict[str, object]:
    """The archive's manifest, as torch-model-archiver 0.12 writes it."""
    return {
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {
            "modelName": model.name, "modelVersion": "1.0", "serializedFile": GRAPH, "handler": HANDLER.name,
            "configFile": "model-config.yaml",
        },
    }  # fmt: skip
