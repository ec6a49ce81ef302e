"""Resolves a product's picture to a local file below the catalogue's root."""

from pathlib import Path

from serving.contract.addresses import local_path, scheme

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}


def picture_path(uri: str, root: str) -> Path | None:
    """The file of a local picture; None when it is remote, outside the root, or has no picture suffix."""
    if {scheme(uri), scheme(root)} - {"", "file"} or not root:
        return None
    base = local_path(root).resolve()
    try:
        path = (base / local_path(uri)).resolve()
        usable = path.is_relative_to(base) and path.suffix.lower() in SUFFIXES and path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL, links that lead to each other
        return None
    return path if usable else None
