"""tokenizer.json gives open_clip's ids, read by the `tokenizers` package alone."""

import json
from pathlib import Path

import open_clip
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tasks.encoder.data.tokenizer import build_tokenizer, clip_tokenizer, encode_texts, read_tokenizer, write_tokenizer
from tasks.encoder.train.open_clip_models import Architecture
from tasks.errors import TrainingError

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
    write_tokenizer(clip_tokenizer(context), tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    found = [e.ids for e in tokenizer.encode_batch(TEXTS)]
    assert found == open_clip.SimpleTokenizer()(TEXTS, context_length=context).tolist()


def saved_tokenizer(folder: Path, **config: object) -> Path:
    """A word-level tokenizer as Hugging Face's libraries save it, in a folder of open_clip's."""
    vocabulary = {word: n for n, word in enumerate(["<pad>", "<eos>", "<bos>", "[UNK]", "a", "red", "mug", "its"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def architecture(clean: str = "canonicalize", **text: object) -> Architecture:
    model = {
        "text_cfg": {"context_length": 6, "hf_tokenizer_name": "someones/tokenizer", "tokenizer_kwargs": {"clean": clean}} | text
    }
    return Architecture(model, {})


@pytest.mark.parametrize(
    ("clean", "config", "expected"),
    [
        ("canonicalize", {}, [4, 5, 6, 7, 0, 0]),
        ("canonicalize", {"add_eos_token": True, "eos_token": {"content": "<eos>"}}, [4, 5, 6, 7, 1, 0]),
        (
            "canonicalize",
            {"add_bos_token": True, "bos_token": "<bos>", "add_eos_token": True, "eos_token": "<eos>"},
            [2, 4, 5, 6, 7, 1],
        ),
        ("lower", {}, [4, 5, 3, 3, 0, 0]),
        ("whitespace", {}, [3, 3, 3, 3, 0, 0]),
    ],
)
def test_hugging_faces_tokenizer_is_read_from_the_models_folder_with_open_clips_cleaning(
    tmp_path: Path, clean: str, config: dict, expected: list[int]
) -> None:
    folder = saved_tokenizer(tmp_path / "model", pad_token="<pad>", **config)
    tokenizer = build_tokenizer(architecture(clean), f"local-dir:{folder}")
    write_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    for read in (tokenizer, read_tokenizer(tmp_path / "tokenizer.json")):
        assert encode_texts(read, ["A  RED mug, it's"]).tolist() == [expected]
        assert encode_texts(read, ["a " * 20]).shape == (1, 6)


@pytest.mark.parametrize(
    ("text", "config", "sentence"),
    [
        ({}, {}, "tokenizer_config.json names no pad_token that tokenizer.json knows"),
        ({}, {"pad_token": "<none>"}, "names no pad_token that tokenizer.json knows; texts cannot be filled to 6 tokens"),
        ({"tokenizer_mode": "clips"}, {"pad_token": "<pad>"}, "cuts texts in a way that only open_clip knows"),
    ],
)
def test_a_tokenizer_that_cannot_be_followed_is_one_sentence(tmp_path: Path, text: dict, config: dict, sentence: str) -> None:
    folder = saved_tokenizer(tmp_path / "model", **config)
    with pytest.raises(TrainingError, match=sentence):
        build_tokenizer(architecture(**text), f"local-dir:{folder}")
    with pytest.raises(TrainingError, match=r"the tokenizer .*gone/tokenizer.json cannot be read"):
        build_tokenizer(architecture(), f"local-dir:{tmp_path}/gone")
