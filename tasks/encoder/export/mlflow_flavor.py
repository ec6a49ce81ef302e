"""Makes an encoder folder an MLflow model: an MLmodel file with an onnx and a python_function flavour of the query variant."""

import shutil
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import numpy as np

import serving
from serving.contract.manifest import EncoderManifest
from serving.contract.pyfunc import COLUMN

REQUIRED = ("mlflow", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "pillow", "pydantic", "simplejpeg")
CODE = "code"


def write_flavor(folder: Path, manifest: EncoderManifest) -> None:
    """Writes MLmodel: `mlflow.pyfunc.load_model` takes image bytes, `mlflow.onnx.load_model` gives the bare query graph.

    The python_function decodes as a replica does and verifies what it opens; its code lies in `code/`, so it needs no Vitrine to be
    installed. The graph takes pixels that somebody else decoded, and nothing is verified.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, COLUMN)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, manifest.dim))]),
    )
    model = Model(signature=signature, metadata={"query": manifest.query, "document": manifest.document})
    file = manifest.variant(manifest.query).file.path
    model.add_flavor("onnx", onnx_version=version("onnx"), data=file, providers=["CPUExecutionProvider"])
    model.add_flavor(
        "python_function",
        loader_module="serving.contract.pyfunc",
        code=CODE,
        python_version=python_version(),
        env={"virtualenv": "python_env.yaml"},
    )
    (folder / "python_env.yaml").write_text(f"python: '{python_version()}'\ndependencies: [-r requirements.txt]\n")
    (folder / "requirements.txt").write_text("".join(f"{name}=={version(name)}\n" for name in REQUIRED))
    _copy_code(folder / CODE)
    model.save(str(folder / "MLmodel"))


def _copy_code(target: Path) -> None:
    """Copies serving.contract, which decodes and encodes and imports nothing else of ours, into the version."""
    source = Path(str(serving.__file__)).parent
    for path in (source / "__init__.py", *sorted((source / "contract").glob("*.py"))):
        copy = target / "serving" / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
