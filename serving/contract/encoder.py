"""Opens an encoder version; a session is used only after it reproduces its golden outputs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from serving.contract.files import ContractError, FileRef, open_verified, verify
from serving.contract.golden_outputs import check_golden_outputs, read_golden_outputs
from serving.contract.graph_check import Check
from serving.contract.manifest import EncoderManifest, Variant, fingerprint, parse_manifest, read_manifest_bytes
from serving.contract.runtimes import ONNXRUNTIME, Runtime, Session


class Encoder:
    """An open tower variant: pixels (n, size, size, 3) uint8, or tokens (n, context) int64, to unit vectors."""

    def __init__(self, session: Session, name: str, fingerprint: str, runtime: str, alone: bool = False) -> None:
        self.session, self.name, self.fingerprint, self.runtime, self.alone = session, name, fingerprint, runtime, alone

    def encode(self, batch: np.ndarray) -> np.ndarray:
        """Unit vectors (n, dim) float32 of a batch; an input's vector does not depend on the rest of the batch."""
        if self.alone and len(batch) > 1:
            return np.concatenate([self.session(batch[i : i + 1]) for i in range(len(batch))])
        return self.session(batch)


class EncoderFolder:
    """An encoder version on disk: `encoder.json` and the files it names. `expected`: what `encoder.json` has to be."""

    def __init__(self, folder: Path, expected: FileRef | None = None) -> None:
        self.folder, path = folder, folder / "encoder.json"
        data = read_manifest_bytes(path if expected is None else open_verified(path, expected))
        self.manifest = parse_manifest(data, EncoderManifest, str(path))

    def open(self, name: str, threads: int = 1, runtime: Runtime = ONNXRUNTIME) -> Encoder:
        """The encoder "tower.variant", its checksum, fingerprint and golden outputs verified. Raises ContractError."""
        variant = self.manifest.variant(name)
        if variant.fingerprint != fingerprint(variant.file.sha256, self.manifest.preprocess):
            raise ContractError(f"{name}: its fingerprint does not follow from its file and preprocessing")
        file = _file(variant, name, runtime)
        path = self._verify_graph(variant, file, open_verified if variant.data is None else verify)
        session = runtime.open(path, name.partition(".")[2], threads, variant.fingerprint)
        encoder = Encoder(session, name, variant.fingerprint, runtime.name, variant.alone)
        inputs, expected = self._golden(name)
        check_golden_outputs(name, encoder.encode(inputs), expected, encoder.runtime)
        return encoder

    def self_similarity(self, query: str, document: str) -> float:
        """Mean similarity of a picture's vector by `query` with its own by `document`, over the golden pictures; 1 for one encoder."""
        if query == document:
            return 1.0
        return float((self._golden(query)[1] * self._golden(document)[1]).sum(axis=1).mean())

    def check_graph(self, name: str, check: Check, runtime: Runtime = ONNXRUNTIME) -> None:
        """Checks that the graph of "tower.variant" opens and runs in a child process, on one golden input. Raises ContractError."""
        variant = self.manifest.variant(name)
        inputs, _ = self._golden(name)
        check(name, self._verify_graph(variant, _file(variant, name, runtime), verify), runtime, inputs[:1])

    def verified_graph(self, name: str) -> Path:
        """The path of the ONNX graph of "tower.variant", it and its weights verified. Raises ContractError."""
        variant = self.manifest.variant(name)
        return self._verify_graph(variant, variant.file, verify)

    def _verify_graph(self, variant: Variant, file: FileRef, opened: Callable[[Path, FileRef], Path]) -> Path:
        """The path of a variant's file by `opened`, its weights beside it verified, too.

        A runtime finds such weights by the graph's own path, so that it cannot be given an open descriptor.
        """
        if variant.data is not None and file == variant.file:
            verify(self.folder / variant.data.path, variant.data)
        return opened(self.folder / file.path, file)

    def _golden(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The golden inputs of "tower.variant" and its outputs."""
        golden = self.manifest.golden
        return read_golden_outputs(open_verified(self.folder / golden.path, golden), name)


def _file(variant: Variant, name: str, runtime: Runtime) -> FileRef:
    if runtime.format != "torchscript":
        return variant.file
    if variant.torchscript is None:
        raise ContractError(f"{name}: this encoder version has no TorchScript file of it; {runtime.name} cannot run it")
    return variant.torchscript
