"""Resolves a product's picture to a local file below the catalogue's root."""

from pathlib import Path
from urllib.parse import unquote

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}


def picture_path(uri: str, root: str) -> Path | None:
    """The file of a local picture; None when it is remote, outside the root, or has no picture suffix."""
    if "://" in uri.removeprefix("file://") or "://" in root or not root:
        return None
    base = Path(root).resolve()
    text = unquote(uri.removeprefix("file://")).removeprefix("localhost") if uri.startswith("file://") else uri
    path = (base / text).resolve()
    if not path.is_relative_to(base) or path.suffix.lower() not in SUFFIXES or not path.is_file():
        return None
    return path
