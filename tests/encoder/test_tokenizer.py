"""tokenizer.json gives open_clip's ids, read by the `tokenizers` package alone."""

from pathlib import Path

import open_clip
import pytest
from tokenizers import Tokenizer

from tasks.encoder.export.tokenizer import write_tokenizer

TEXTS = [
    "Golden Delicious",
    "It's a dog’s  T-shirt, size 42!!",
    "Crème brûlée café 100% &amp; more",
    "",
    "   ",
    "日本語 mug",
    "don't WE'LL they’re",
    "3/4 \t x\n5",
    "émoji 😀 ok",
    "Ünïcödé ÅÄÖ räksmörgås",
    "A&B <b> “quoted” -- ...",
    "a title that goes on and on " * 8,
]


@pytest.mark.parametrize("context", [16, 77])
def test_the_ids_are_open_clips_own(tmp_path: Path, context: int) -> None:
    write_tokenizer(tmp_path / "tokenizer.json", context)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    found = [e.ids for e in tokenizer.encode_batch(TEXTS)]
    assert found == open_clip.SimpleTokenizer()(TEXTS, context_length=context).tolist()
