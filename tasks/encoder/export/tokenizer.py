"""CLIP's tokenizer as one `tokenizer.json`: serving reads it with the `tokenizers` package and gets open_clip's own ids."""

from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from serving.contract.files import atomic_write

WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
REPAIRED = {
    "‘": "'", "’": "'", "“": '"', "”": '"', "&quot;": '"', "&#39;": "'", "&lt;": "<", "&gt;": ">", "&amp;": "&",
}  # fmt: skip
"""What open_clip's cleaning (ftfy, html.unescape) changes in ordinary titles. Mojibake and rarer entities are not repaired."""


def write_tokenizer(path: Path, context: int) -> None:
    """Writes the tokenizer: ids (context,) with start and end tokens, cut or filled with zeros to the context length."""
    clip = SimpleTokenizer()
    merges = sorted(clip.bpe_ranks, key=clip.bpe_ranks.__getitem__)
    tokenizer = Tokenizer(models.BPE(vocab=clip.encoder, merges=merges, end_of_word_suffix="</w>", unk_token="<end_of_text>"))
    tokenizer.normalizer = normalizers.Sequence([
        *(normalizers.Replace(found, put) for found, put in REPAIRED.items()),
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
    with atomic_write(path) as temporary:
        tokenizer.save(str(temporary))
