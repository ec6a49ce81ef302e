"""The text side of an encoder version: words to a unit vector in the space of its pictures."""

from pathlib import Path

import numpy as np

from serving.contract.encoder import Encoder, EncoderFolder
from serving.contract.files import ContractError, verify

TOWER = "text"
ORDER = ("fp32", "fp16", "int8")
"""Which variant is taken, where there are several: texts are short, so exactness costs little."""


class TextEncoder:
    """The text tower with its tokenizer."""

    def __init__(self, encoder: Encoder, tokenizer: Path) -> None:
        from tokenizers import Tokenizer

        self.encoder = encoder
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ContractError(f"{tokenizer.name}: not a tokenizer: {error}") from None
        self.fingerprint = encoder.fingerprint

    @classmethod
    def open(cls, encoders: EncoderFolder, threads: int = 1) -> "TextEncoder | None":
        """The text tower, its files, golden outputs and tokenizer verified; None when the encoder version has none."""
        manifest = encoders.manifest
        variants = manifest.towers.get(TOWER, {})
        if not variants or manifest.tokenizer is None:
            return None
        name = min(variants, key=ORDER.index)
        tokenizer = verify(encoders.folder / manifest.tokenizer.path, manifest.tokenizer)
        return cls(encoders.open(f"{TOWER}.{name}", threads), tokenizer)

    def encode(self, text: str) -> np.ndarray:
        """The unit vector (d,) float32 of some words; what is over the tower's context is cut."""
        return self.encoder.encode(np.array([self.tokenizer.encode(text).ids], np.int64))[0]
