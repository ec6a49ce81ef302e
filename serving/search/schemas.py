"""Request and answer models of the HTTP API, frozen, with examples for the OpenAPI document."""

import base64
import binascii
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from serving.contract.box import Box
from serving.invalid_request import InvalidRequest
from serving.ranking.filters import Filter
from serving.ranking.ranker import User
from serving.versions.version_info import ApiModel, VersionInfo

MAX_TEXT_LENGTH = 1000
PHOTO_SHA256 = "^[0-9a-f]{64}$"


class RequestUser(User):
    """Who asks: preferences as they are given here, over those that the feature store has under `id`."""

    id: str = Field(default="", max_length=200, examples=["u-1234"])


QUERY_FORMS = (("image",), ("image_url",), ("text",), ("product_id",), ("vector",), ("image", "text"), ("image_url", "text"))
"""The valid combinations of query fields in a request."""
QUERY_FIELDS = tuple(dict.fromkeys(name for way in QUERY_FORMS for name in way))


def _query_form(given: tuple[str, ...]) -> dict[str, Any]:
    """One of QUERY_FORMS in JSON Schema; null counts as absent."""
    known = {name: {"not": {"type": "null"}} if name in given else {"type": "null"} for name in QUERY_FIELDS}
    return {"title": " and ".join(given), "required": list(given), "properties": known}


class SearchRequest(ApiModel):
    """A search by exactly one of: a photo, words, a product already in the catalogue, or a query vector; or photo and words mixed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"product_id": "P000001", "k": 20, "filter": {"in_stock": True}, "explain": True},
                {"text": "a red mug with a handle", "filter": {"price": {"lte": 20}}},
                {"image": "/9j/4AAQSkZJRg…", "text": "the same in blue", "text_weight": 0.3},
                {"image": "/9j/4AAQSkZJRg…", "box": {"x": 0.25, "y": 0.1, "width": 0.5, "height": 0.6}},
                {"product_id": "P000001", "user": {"brands": {"Norda": 0.8}, "price": 25}},
            ],
            "oneOf": [_query_form(given) for given in QUERY_FORMS],
        }
    )

    image: str | None = Field(default=None, description="encoded image bytes, base64")
    image_url: str | None = Field(
        default=None, max_length=2000, description="where the photo lies; only where this replica's settings allow its host"
    )
    box: Box | None = Field(
        default=None,
        description="of a photo turned upright: only what lies in it is searched for; x + width and y + height are at most 1",
    )
    text: str | None = Field(
        default=None, max_length=MAX_TEXT_LENGTH, pattern=r"\S", description="words, where the encoder has a text tower"
    )
    text_weight: float = Field(default=0.5, ge=0, le=1, description="of a photo with words: how much the words count")
    product_id: str | None = Field(default=None, max_length=1000)
    vector: list[Annotated[float, Field(strict=True)]] | None = Field(
        default=None, description="a unit vector of the encoder's dimension", max_length=4096
    )
    k: int = Field(default=20, ge=1, le=200)
    candidates: int | None = Field(default=None, ge=1, le=2000, description="how many to rank; by default the version's own, 500")
    filter: Filter | None = None
    user: RequestUser | None = None
    explain: bool = False

    @model_validator(mode="after")
    def _one_query(self) -> "SearchRequest":
        given = tuple(n for n in QUERY_FIELDS if getattr(self, n) is not None)
        if given not in QUERY_FORMS:
            shown = ", ".join(given) or "none"
            raise ValueError(
                f"give exactly one of image, image_url, text, product_id, vector, or a photo and text (given: {shown})"
            )
        return self

    def image_bytes(self) -> bytes:
        """The photo's bytes. Raises InvalidRequest when `image` is not base64."""
        try:
            return base64.b64decode(self.image or "", validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("image is not base64") from None


class Result(TypedDict):
    """One product of the answer. With `explain`: `reasons`, each term of its score, and `notes`, what a rule did to its place.

    `score` orders them: the similarity of the picture, and what the ranker adds. `match` is the score as a share of what a product's
    own picture would score, 0 to 1; absent where the query is words alone. `matched_image`: the address of the product's picture that
    matched; in every result of a version whose products may have several pictures, and in none of others. Both addresses are null of a
    product without a picture, which was found by its title.

    A dict, not a model: twenty of them are made for every answer. In the order they are filled in, so that an answer that is
    remembered is the same to the byte.
    """

    product_id: str
    title: str
    brand: str
    category: list[str]
    price: float | None
    currency: str
    in_stock: bool
    score: float
    similarity: float
    match: NotRequired[float]
    image_url: str | None
    matched_image: NotRequired[str | None]
    reasons: NotRequired[dict[str, float]]
    notes: NotRequired[list[str]]


class Coverage(ApiModel):
    """How many shards answered."""

    shards_ok: int
    shards_total: int


class SearchAnswer(ApiModel):
    """The answer to a search, from one version throughout."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "4f0c2d6a9be14c1b",
                    "version": {"index": "7", "encoder": "3", "tower": "student", "variant": "int8", "manifest": "scheduled__2026-11-24"},
                    "results": [
                        {
                            "product_id": "P000001", "score": 0.934, "similarity": 0.861, "match": 0.9842, "title": "Norda mug",
                            "brand": "Norda", "category": ["Home", "Mugs"],
                            "image_url": "/v1/images/P000001", "matched_image": "/v1/images/P000001?picture=2", "price": 12.5,
                            "currency": "EUR",
                            "in_stock": True, "notes": [],
                            "reasons": {"similarity": 0.861, "category": 0.041, "popularity": 0.0, "in_stock": 0.005, "colour": 0.007},
                        }
                    ],
                    "coverage": {"shards_ok": 2, "shards_total": 2},
                    "cached": [],
                    "timings_ms": {"decode": 1.1, "encode": 4.0, "retrieve": 1.2, "rank": 0.4, "total": 6.9},
                }
            ]
        }
    )  # fmt: skip

    request_id: str
    version: VersionInfo
    results: list[Result]
    coverage: Coverage
    cached: list[str]
    timings_ms: dict[str, float]

    def with_request(self, request_id: str, timings_ms: dict[str, float]) -> "SearchAnswer":
        """This cached answer for another request."""
        return self.model_copy(update={"request_id": request_id, "cached": ["response"], "timings_ms": timings_ms})


class BatchRequest(ApiModel):
    """Several searches, answered by one and the same version."""

    searches: list[SearchRequest] = Field(min_length=1, max_length=32)


class Problem(ApiModel):
    """An error, as RFC 9457 (problem+json) writes it: one useful sentence in `detail`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank", "title": "Cannot be answered", "status": 422, "reason": "query", "request_id": "4f0c2d6a",
                    "detail": "filter: this index version has no column 'colour' to ask; it has product_id, title, brand, category",
                }
            ]
        }
    )  # fmt: skip

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str = ""
    request_id: str = ""


class BatchAnswer(ApiModel):
    """One answer, or one problem, for each search of a batch, in their order."""

    answers: list[SearchAnswer | Problem]
