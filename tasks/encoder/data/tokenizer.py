"""The tokenizer of a text tower as one `tokenizer.json`: training, export and serving read the same ids from it."""

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from serving.contract.files import atomic_write
from tasks.encoder.config import FOLDER
from tasks.encoder.train.open_clip_models import Architecture, from_hub
from tasks.errors import TrainingError

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
CLIP_CONTEXT = 77

WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
REPAIRED = {
    "‘": "'", "’": "'", "“": '"', "”": '"', "&quot;": '"', "&#39;": "'", "&lt;": "<", "&gt;": ">", "&amp;": "&",
}  # fmt: skip
"""What open_clip's cleaning (ftfy, html.unescape) changes in ordinary titles. Mojibake and rarer entities are not repaired."""


CANONICAL = (
    normalizers.Replace("_", " "),
    normalizers.Replace(Regex(f"[{''.join(f'{chr(92)}{c}' for c in string.punctuation)}]"), ""),
    normalizers.Lowercase(),
)
"""open_clip's cleaning "canonicalize", which SigLIP was trained with."""
CLEANING: dict[str, tuple[Any, ...]] = {"canonicalize": CANONICAL, "lower": (normalizers.Lowercase(),), "whitespace": ()}


def build_tokenizer(architecture: Architecture, name: str) -> Tokenizer:
    """The tokenizer of the model called `name`: CLIP's, or Hugging Face's of its config, from its folder or the hub.

    Gives ids (context,) cut or filled to the context length. Raises TrainingError.
    """
    text = architecture.model["text_cfg"]
    context, hub = int(text.get("context_length", CLIP_CONTEXT)), text.get("hf_tokenizer_name") or text.get("hf_model_name")
    if not hub:
        return clip_tokenizer(context)
    if text.get("tokenizer_mode") or text.get("tokenizer_kwargs", {}).get("strip_sep_token"):
        raise TrainingError(
            f"{name} cuts texts in a way that only open_clip knows (tokenizer_mode, strip_sep_token); name another"
        )
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        path, config = folder / TOKENIZER, folder / TOKENIZER_CONFIG
    else:
        path, config = from_hub(hub, TOKENIZER), from_hub(hub, TOKENIZER_CONFIG)
    clean = text.get("tokenizer_kwargs", {}).get("clean", "whitespace")
    return hugging_face_tokenizer(path, config, clean, context)


def hugging_face_tokenizer(path: Path, config: Path, clean: str, context: int) -> Tokenizer:
    """The tokenizer in a `tokenizer.json` and its `tokenizer_config.json`, with open_clip's cleaning before it."""
    try:
        tokenizer, chosen = Tokenizer.from_file(str(path)), json.loads(config.read_text())
    except Exception as error:  # tokenizers raises bare Exceptions
        raise TrainingError(f"the tokenizer {path} cannot be read with {config.name} beside it: {error}") from None
    pad = _token(chosen.get("pad_token"))
    if not pad or tokenizer.token_to_id(pad) is None:
        raise TrainingError(f"{config} names no pad_token that {path.name} knows; texts cannot be filled to {context} tokens")
    tidy = [*_repairs(), *CLEANING[clean], normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
    tokenizer.normalizer = normalizers.Sequence([*tidy, *own])
    first, last = (_token(chosen.get(f"{t}_token")) if chosen.get(f"add_{t}_token") else "" for t in ("bos", "eos"))
    if first or last:
        ids = [(t, tokenizer.token_to_id(t)) for t in (first, last) if t]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(filter(None, [first, "$A", last])), special_tokens=ids
        )
    tokenizer.enable_truncation(max_length=context)
    tokenizer.enable_padding(length=context, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return tokenizer


def _token(value: Any) -> str:
    """A special token in a tokenizer_config.json: its text, or a record of it."""
    return value.get("content", "") if isinstance(value, dict) else value or ""


def _repairs() -> list[Any]:
    return [normalizers.Replace(found, put) for found, put in REPAIRED.items()]


def clip_tokenizer(context: int) -> Tokenizer:
    """CLIP's tokenizer: open_clip's own ids with start and end tokens, cut or filled with zeros to the context length."""
    clip = SimpleTokenizer()
    merges = sorted(clip.bpe_ranks, key=clip.bpe_ranks.__getitem__)
    tokenizer = Tokenizer(models.BPE(vocab=clip.encoder, merges=merges, end_of_word_suffix="</w>", unk_token="<end_of_text>"))
    tokenizer.normalizer = normalizers.Sequence([
        *_repairs(),
        normalizers.NFC(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
        normalizers.Lowercase(),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    start, end = "<start_of_text>", "<end_of_text>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, clip.sot_token_id), (end, clip.eot_token_id)]
    )
    tokenizer.enable_truncation(max_length=context)
    tokenizer.enable_padding(length=context, pad_id=0, pad_token="!")
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes `tokenizer.json`."""
    with atomic_write(path) as temporary:
        tokenizer.save(str(temporary))


def read_tokenizer(path: Path) -> Tokenizer:
    """Inverse of `write_tokenizer`. Raises TrainingError."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise TrainingError(f"the tokenizer {path} cannot be read: {error}") from None


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Tokens (n, context) int64 of texts."""
    return np.asarray([t.ids for t in tokenizer.encode_batch(list(texts))], np.int64)
