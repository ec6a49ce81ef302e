"""Weights and rules from a file: what is set and nothing else, or one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.ranking.ranker import RankerConfig
from tasks.errors import SettingsError
from tasks.index.choice import IndexConfig
from tasks.index.ranker_config import read_ranker
from tasks.index.version_manifest import content_key


def test_what_is_set_is_what_a_version_carries(tmp_path: Path) -> None:
    wanted = {
        "weights": {"colour": 0.05},
        "rules": {"boost": [{"where": {"brand": "Norda"}, "by": 0.05}], "pin": [{"product_id": "p1", "place": 3}]},
    }
    path = tmp_path / "ranker.json"
    path.write_text(json.dumps(wanted | {"voters": RankerConfig().voters}))
    read = read_ranker(str(path))
    assert read == wanted, "what stays at its default is left out, so that the default's words are no change"
    assert RankerConfig.model_validate(json.loads(json.dumps(read))).rules.pin[0].place == 3
    assert read_ranker("") == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"ranker\.json is not JSON"),
        ("[]", r"ranker\.json holds no weights and rules: the file: "),
        ('{"weights": {"color": 1}}', r"weights\.color: Extra inputs are not permitted"),
        ('{"rules": {"require": {"price": {"near": 3}}}}', r"rules\.require: .*near"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "ranker.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=sentence):
        read_ranker(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"VITRINE_RANKER='.*missing\.json' cannot be read"):
        read_ranker(str(tmp_path / "missing.json"))


def test_other_weights_are_another_content(tmp_path: Path) -> None:
    def key(ranker: dict[str, Any]) -> str:
        return content_key("rows", "document", "query", IndexConfig(), ranker)

    assert len({key({}), key({"voters": 21}), key({"weights": {"colour": 0.1}})}) == 3
