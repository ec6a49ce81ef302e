"""Text encoder: text to a unit vector in the embedding space of the pictures."""

from pathlib import Path

import numpy as np

from serving.contract.encoder import Encoder, EncoderFolder
from serving.contract.files import ContractError, open_verified
from serving.contract.manifest import EncoderManifest

TOWER = "text"
ORDER = ("fp32", "fp16", "int8")
"""Preference among variants: texts are short, so that precision costs little."""


def text_variant(manifest: EncoderManifest) -> str:
    """The "text.variant" to use; "" where the encoder version has no text tower."""
    variants = manifest.towers.get(TOWER, {})
    return f"{TOWER}.{min(variants, key=ORDER.index)}" if variants else ""


class TextEncoder:
    """The text tower and its tokenizer."""

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
        """Opens the text tower, verifying its files and golden outputs; None when the encoder version has none."""
        manifest = encoders.manifest
        name = text_variant(manifest)
        if not name or manifest.tokenizer is None:
            return None
        tokenizer = open_verified(encoders.folder / manifest.tokenizer.path, manifest.tokenizer)
        return cls(encoders.open(name, threads), tokenizer)

    def encode(self, text: str) -> np.ndarray:
        """The unit vector (d,) float32 of a text, truncated to the tower's context length."""
        return self.encoder.encode(np.array([self.tokenizer.encode(text).ids], np.int64))[0]
