"""An encoder as a server holds it: its files and names, and how the server makes batches."""

from dataclasses import dataclass
from pathlib import Path

from serving.contract.encoder import EncoderFolder
from serving.contract.manifest import EncoderManifest, Variant
from serving.versions.encoder_server import model_name
from tasks.errors import VitrineError

GRAPH = "model.onnx"


@dataclass(frozen=True)
class Batching:
    """How a server works: `max_batch` pictures at a time, waiting at most `delay_us` for them, in `instances` of the model.

    `threads`: of ONNX Runtime in each instance where a Python process runs it.
    """

    max_batch: int = 16
    delay_us: int = 500
    instances: int = 1
    threads: int = 1
    gpu: bool = False


@dataclass(frozen=True)
class ServedModel:
    """One variant of an image tower; `input_name` and `output_name` are those of its graph."""

    name: str
    manifest: EncoderManifest
    variant_name: str
    variant: Variant
    graph: Path
    input_name: str
    output_name: str

    def batch(self, batching: Batching) -> int:
        """Most pictures at a time: one where the scales of the variant depend on its batch (dynamic int8)."""
        return 1 if self.variant.alone else batching.max_batch

    def files(self) -> dict[str, Path]:
        """The graph's files by their names in the server: GRAPH, and what holds its weights under its own name."""
        return {GRAPH if f == self.variant.file else f.path: self.graph.with_name(f.path) for f in self.variant.graph_files()}


def served_model(encoders: EncoderFolder, variant_name: str = "") -> ServedModel:
    """The model of "tower.variant", by default the one that embeds photos; its files verified.

    Raises ContractError for a damaged version or a variant that is not there, VitrineError for a text tower.
    """
    name = variant_name or encoders.manifest.query
    if name.startswith("text."):
        raise VitrineError(f"{name}: words are encoded by the replica itself; a server holds an image tower")
    variant, graph = encoders.manifest.variant(name), encoders.verified_graph(name)
    return ServedModel(model_name(variant.fingerprint), encoders.manifest, name, variant, graph, *_tensors(graph))


def _tensors(graph: Path) -> tuple[str, str]:
    """The names of a graph's input and output."""
    import onnx

    found = onnx.load(str(graph), load_external_data=False).graph
    weights = {w.name for w in found.initializer}
    return next(i.name for i in found.input if i.name not in weights), found.output[0].name
