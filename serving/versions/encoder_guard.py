"""Keeps an encoder that crashes its runtime from taking a serving process down: it is opened in a child process first."""

from serving.contract.encoder import EncoderFolder
from serving.contract.graph_check import IN_CHILD, Check
from serving.contract.runtimes import ONNXRUNTIME, Runtime
from serving.versions.text_encoder import text_variant


class EncoderGuard:
    """Checks the encoders of a version that a process is to open. One guard for each process that serves.

    Encoders that were opened here before are not checked again, nor are those of the first version: nothing is served yet, and
    a replica starts sooner. So an ordinary index version costs nothing, and one with a new encoder about a second.
    """

    def __init__(self, check: Check = IN_CHILD) -> None:
        self.check = check
        self.checked: set[str] = set()

    def __call__(self, encoders: EncoderFolder, query: str, runtime: Runtime) -> None:
        """Raises ContractError where the graph of photos or that of words does not open and run once in a child process."""
        first, words = not self.checked, text_variant(encoders.manifest)
        for name, variant_runtime in ((query, runtime), (words, ONNXRUNTIME)):
            if not name:
                continue
            content = encoders.manifest.variant(name).fingerprint
            if not first and content not in self.checked:
                encoders.check_graph(name, self.check, variant_runtime)
            self.checked.add(content)
