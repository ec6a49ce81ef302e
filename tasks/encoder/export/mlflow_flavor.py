"""Makes an encoder folder an MLflow model: an MLmodel file whose onnx flavor is the query variant."""

from importlib.metadata import version
from pathlib import Path
from platform import python_version

import numpy as np

from serving.contract.manifest import EncoderManifest

REQUIRED = ("mlflow", "numpy", "onnx", "onnxruntime")


def write_flavor(folder: Path, manifest: EncoderManifest) -> None:
    """Writes MLmodel, so that `mlflow.onnx.load_model` and `mlflow.pyfunc.load_model` load the query graph.

    The other towers and variants lie beside it under the names that `encoder.json` gives; loaded this way nothing is verified.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    file, size = manifest.variant(manifest.query).file.path, manifest.preprocess.size
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size, 3), "input")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, manifest.dim), "vectors")]),
    )
    model = Model(signature=signature, metadata={"query": manifest.query, "document": manifest.document})
    model.add_flavor("onnx", onnx_version=version("onnx"), data=file, providers=["CPUExecutionProvider"])
    model.add_flavor(
        "python_function",
        loader_module="mlflow.onnx",
        data=file,
        python_version=python_version(),
        env={"virtualenv": "python_env.yaml"},
    )
    (folder / "python_env.yaml").write_text(f"python: '{python_version()}'\ndependencies: [-r requirements.txt]\n")
    (folder / "requirements.txt").write_text("".join(f"{name}=={version(name)}\n" for name in REQUIRED))
    model.save(str(folder / "MLmodel"))
