"""The words of the HTTP interface: requests and answers, typed and frozen, with examples for the OpenAPI document."""

import base64
import binascii

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.ranker import User


class Wire(BaseModel):
    """Base of everything that travels: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Filter(Wire):
    """Which products may be in the answer; every named condition must hold."""

    brand: list[str] = Field(default=[], examples=[["Norda"]])
    category: list[str] = Field(default=[], description="names at any level of the category path", examples=[["Shoes"]])
    min_price: float | None = Field(default=None, allow_inf_nan=False)
    max_price: float | None = Field(default=None, allow_inf_nan=False)
    in_stock: bool | None = None


class SearchRequest(Wire):
    """A search by exactly one of: a photo (base64), a product already in the catalogue, or a query vector."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"product_id": "P000001", "k": 20, "filter": {"in_stock": True}, "explain": True}]}
    )

    image: str | None = Field(default=None, description="encoded image bytes, base64")
    product_id: str | None = None
    vector: list[float] | None = Field(default=None, description="a unit vector of the encoder's dimension", max_length=4096)
    k: int = Field(default=20, ge=1, le=200)
    candidates: int | None = Field(default=None, ge=1, le=2000, description="how many to rank; by default the version's own, 500")
    filter: Filter | None = None
    user: User | None = None
    explain: bool = False

    @model_validator(mode="after")
    def _one_query(self) -> "SearchRequest":
        given = [n for n in ("image", "product_id", "vector") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of image, product_id, vector (given: {', '.join(given) or 'none'})")
        return self

    def image_bytes(self) -> bytes:
        """The photo's bytes. Raises ValueError when `image` is not base64."""
        try:
            return base64.b64decode(self.image or "", validate=True)
        except binascii.Error:
            raise ValueError("image is not base64") from None


class Result(Wire):
    """One product of the answer. `reasons`: each term of its score, when `explain` was asked for."""

    product_id: str
    score: float
    similarity: float
    title: str
    brand: str
    category: list[str]
    image_url: str
    price: float | None
    currency: str
    in_stock: bool
    reasons: dict[str, float] | None = None


class VersionOf(Wire):
    """What answered."""

    index: str
    encoder: str
    tower: str
    variant: str
    manifest: str


class Coverage(Wire):
    """How many shards answered."""

    shards_ok: int
    shards_total: int


class SearchAnswer(Wire):
    """The answer to a search, from one version throughout."""

    request_id: str
    version: VersionOf
    results: list[Result]
    coverage: Coverage
    cached: list[str]
    timings_ms: dict[str, float]


class BatchRequest(Wire):
    """Several searches, answered by one and the same version."""

    searches: list[SearchRequest] = Field(min_length=1, max_length=32)


class Problem(Wire):
    """An error, as RFC 9457 (problem+json) writes it: one useful sentence in `detail`."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str = ""
    request_id: str = ""


class BatchAnswer(Wire):
    """One answer, or one problem, for each search of a batch, in their order."""

    answers: list[SearchAnswer | Problem]
