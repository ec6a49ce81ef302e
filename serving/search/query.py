"""One query: what was asked, parsed, with the key of its answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from serving.contract.box import Box
from serving.invalid_request import InvalidRequest
from serving.search.schemas import SearchRequest
from serving.versions.release import EncodedQuery, Release
from serving.versions.text_encoder import TextEncoder


class QueryError(Exception):
    """A query that cannot be answered; the message says why, `status` is its HTTP status."""

    reason = "query"
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Query:
    """A parsed request: its photo, by bytes or only by sha256, the box in it (None: the whole photo), its vector, and its cache key.

    `pixels` are the photo's, where it was decoded elsewhere: (size, size, 3) uint8. `key` hashes everything the answer depends on
    besides the versions.
    """

    request: SearchRequest
    photo: bytes | None
    photo_sha256: str
    vector: np.ndarray | None = field(repr=False)
    key: str
    box: Box | None = None
    pixels: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(cls, request: SearchRequest, photo: bytes | None = None, photo_sha256: str = "") -> "Query":
        """The query of a request. Raises InvalidRequest when its photo is not base64, or its box does not lie in a photo."""
        box = _box_of(request)
        if photo is None and request.image is not None and not photo_sha256:
            photo = request.image_bytes()
        sha = sha256(photo).hexdigest() if photo is not None else photo_sha256
        vector = None if request.vector is None else np.array(request.vector, np.float64)
        source: tuple[object, ...] = (
            sha,
            request.text,
            request.text_weight if sha and request.text is not None else None,
            request.product_id,
            None if vector is None else sha256(vector.tobytes()).hexdigest(),
            request.k,
            request.candidates,
            request.filter.canonical() if request.filter else "",
            request.explain,
        )
        source += (box.model_dump_json(),) if box else ()
        key = sha256(repr(source).encode(errors="surrogatepass")).hexdigest()
        return cls(request, photo, sha, vector, key, box)

    @property
    def kind(self) -> str:
        """photo, text, mixed, product or vector."""
        if self.photo_sha256:
            return "mixed" if self.request.text is not None else "photo"
        return next(
            n for n in ("text", "product", "vector") if getattr(self.request, "product_id" if n == "product" else n) is not None
        )

    @property
    def personal(self) -> bool:
        return self.request.user is not None

    def words(self, release: Release, encoded: EncodedQuery) -> bool:
        """Whether products without a picture may answer, where the version has some: to a text, or to such a product itself."""
        if not release.manifest.several_pictures:
            return False
        if encoded.row is not None:
            return not release.searcher.features.picture_uri(encoded.row)
        return self.request.text is not None

    def photo_bytes(self) -> bytes:
        """The photo's bytes. Raises QueryError(404) where only its sha256 is known."""
        if self.photo is None:
            raise QueryError("this photo is not known here (any more); send it with POST /v1/search", 404)
        return self.photo


def _box_of(request: SearchRequest) -> Box | None:
    """The box of a request, None where it is the whole photo. Raises InvalidRequest."""
    if request.box is None:
        return None
    if request.image is None and request.image_url is None:
        raise InvalidRequest("box: it is a part of a photo, and there is no photo in this request")
    if outside := request.box.outside():
        raise InvalidRequest(f"box: {outside}")
    return None if request.box.whole else request.box


def etag(release: Release, query: Query) -> str:
    """Weak ETag of an answer that is not personal: equal for the same query and version; request id and timings differ."""
    return 'W/"' + sha256(f"{release.identity}|{query.key}".encode()).hexdigest()[:32] + '"'


def text_encoder(release: Release) -> TextEncoder:
    """The release's text encoder. Raises QueryError where its encoder version has none."""
    if release.text_encoder is None:
        version = release.manifest.encoder.version
        raise QueryError(f"encoder version {version} has no text tower; search with a photo, a product or a vector")
    return release.text_encoder
