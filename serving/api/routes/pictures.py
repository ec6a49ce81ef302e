"""Routes of the search page and of product pictures."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from serving.api.dependencies import Bearer, ProductId, ReplicaDep, Slot, chosen_release
from serving.api.errors import ApiError
from serving.api.openapi import KEY_OPTIONAL, problems
from serving.api.product_pictures import picture_path
from serving.api.routes.search import PRIVATE
from serving.search.pipeline import row_of

PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}
STATIC = Path(__file__).parents[2] / "static"
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The Content-Security-Policy allows the page's own script and pictures only: a catalogue's titles cannot inject scripts."""

router = APIRouter()
Picture = Annotated[
    int, Query(ge=0, le=32767, description="which of a product's further pictures; 0: its main one, or the first usable")
]


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)


@router.get(
    "/v1/images/{product_id:path}",
    response_class=FileResponse,
    responses=PICTURE | problems(401, 404, 422, 503),
    openapi_extra=KEY_OPTIONAL,
)
async def picture(
    request: Request, product_id: ProductId, replica: ReplicaDep, _: Bearer, slot: Slot = "", picture: Picture = 0
) -> FileResponse:
    """A product's own picture, where it is a local file."""
    release = chosen_release(request, slot)
    uri = release.searcher.features.picture_uri(row_of(release.searcher, product_id), picture)
    path = uri and picture_path(uri, replica.settings.image_root or release.manifest.snapshot.image_root)
    if not path:
        which = f"picture {picture}" if picture else "the picture"
        raise ApiError(404, f"{which} of product {product_id!r} cannot be shown from here", "no_picture")
    headers = {"Cache-Control": PRIVATE if slot else "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, headers=headers)
