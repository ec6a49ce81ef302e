"""Opens new encoders in a child process first, so that one that crashes its runtime cannot take the replica down."""

from serving.contract.encoder import EncoderFolder
from serving.contract.graph_check import IN_CHILD, Check
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from serving.versions.text_encoder import text_variant


class EncoderTrial:
    """Checks the encoders of a version before a process opens them. One trial per process.

    Skips encoders that were opened before or that a server holds, and those of the first version, when nothing is served yet and the
    replica should start soon. An ordinary index version thus costs nothing, one with a new encoder about a second.
    """

    def __init__(self, check: Check = IN_CHILD) -> None:
        self.check = check
        self.checked: set[str] = set()

    def __call__(self, encoders: EncoderFolder, query: str, runtime: Runtime) -> None:
        """Raises ContractError where the photo or text encoder's graph does not open and run once in a child process."""
        first, words = not self.checked, text_variant(encoders.manifest)
        for name, variant_runtime in ((query, runtime), (words, ONNXRUNTIME)):
            if not name or variant_runtime.format == "server":
                continue
            content = encoders.manifest.variant(name).fingerprint
            if not first and content not in self.checked:
                encoders.check_graph(name, self.check, variant_runtime)
            self.checked.add(content)
