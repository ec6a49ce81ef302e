"""Opening an encoder version: ONNX sessions that are used only after they reproduced their golden outputs."""

from pathlib import Path

import numpy as np

from serving.contract.files import ContractError, verify
from serving.contract.manifest import EncoderManifest, fingerprint, read_manifest

GOLDEN_MIN_COSINE = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.995}


class OnnxEncoder:
    """One tower variant in ONNX Runtime: pixels (n, size, size, 3) uint8, or tokens (n, context) int64, to unit vectors."""

    def __init__(self, path: Path, name: str, fingerprint: str, threads: int = 1) -> None:
        import onnxruntime as ort

        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own unrelated classes for every bad file
            raise ContractError(f"{path.name}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None
        self.name = name
        self.fingerprint = fingerprint
        self.input = self.session.get_inputs()[0].name

    def encode(self, batch: np.ndarray) -> np.ndarray:
        """Unit vectors (n, dim) float32 of a batch."""
        return self.session.run(None, {self.input: batch})[0]


class EncoderFolder:
    """An encoder version on disk: `encoder.json` and the files it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder / "encoder.json", EncoderManifest)

    def open(self, name: str, threads: int = 1) -> OnnxEncoder:
        """The encoder "tower.variant", its checksum, fingerprint and golden outputs verified. Raises ContractError."""
        variant = self.manifest.variant(name)
        path = verify(self.folder / variant.file.path, variant.file)
        expected = fingerprint(variant.file.sha256, self.manifest.preprocess)
        if variant.fingerprint != expected:
            raise ContractError(f"{name}: its fingerprint does not follow from its file and preprocessing")
        encoder = OnnxEncoder(path, name, variant.fingerprint, threads)
        self._check_golden(encoder, name)
        return encoder

    def _check_golden(self, encoder: OnnxEncoder, name: str) -> None:
        golden = np.load(verify(self.folder / self.manifest.golden.path, self.manifest.golden), allow_pickle=False)
        tower, _, variant = name.partition(".")
        inputs = golden["tokens" if tower == "text" else "pixels"]
        found, expected = encoder.encode(inputs), golden[name]
        if found.shape != expected.shape:
            raise ContractError(f"{name}: golden outputs have shape {expected.shape}, the model gives {found.shape}")
        cosine = float((found * expected).sum(axis=1).min())
        least = GOLDEN_MIN_COSINE[variant]
        if not cosine >= least:
            raise ContractError(f"{name}: golden outputs are not reproduced (least cosine {cosine:.5f} < {least})")
