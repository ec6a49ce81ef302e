"""What a request may be: the same in the document as in what is taken."""

from itertools import product
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from serving.ranking.filters import SCHEMA
from serving.search.schemas import SearchRequest

GIVEN: dict[str, Any] = {
    "image": "AAAA",
    "image_url": "https://shop/1.jpg",
    "text": "a mug",
    "product_id": "p1",
    "vector": [1, -0.5],
}


def fits(body: dict[str, Any]) -> bool:
    try:
        SearchRequest.model_validate(body)
    except ValidationError:
        return False
    return True


def test_the_document_says_what_a_search_may_be_by() -> None:
    """Every set of sources, the others missing or null."""
    components = {"schemas": {"Filter": SCHEMA}}
    document = Draft202012Validator(SearchRequest.model_json_schema() | {"components": components})
    taken = set()
    for chosen in product((True, False, None), repeat=len(GIVEN)):
        body = {
            name: GIVEN[name] if is_given else None for name, is_given in zip(GIVEN, chosen, strict=True) if is_given is not None
        }
        assert document.is_valid(body) == fits(body), body
        if fits(body):
            taken.add(tuple(sorted(name for name in body if body[name] is not None)))
    photos = {("image",), ("image_url",), ("image", "text"), ("image_url", "text")}
    assert taken == photos | {("text",), ("product_id",), ("vector",)}


@pytest.mark.parametrize("number", [True, False, "1", None, [1]])
def test_a_vector_has_numbers_and_nothing_that_could_be_read_as_one(number: object) -> None:
    with pytest.raises(ValidationError, match=r"vector\.1\n.*valid number"):
        SearchRequest.model_validate({"vector": [1, number]})
