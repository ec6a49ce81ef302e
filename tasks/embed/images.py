"""Reads a picture's bytes from its uri, restricted to allowed locations."""

import stat as stat_module
from pathlib import Path

from serving.contract import addresses
from serving.contract.preprocess import DEFAULT_LIMITS, ImageLimits, ImageRejected
from serving.search.image_fetch import Fetcher
from tasks import storage
from tasks.catalog.photo_box import cut_out, split_box
from tasks.queries import view_store

NOWHERE = Fetcher()


def fetcher(hosts: tuple[str, ...], private: bool = False, timeout_s: float = 10.0) -> Fetcher:
    """An HTTPS client for pictures on `hosts`; with `private`, hosts may be in private networks and use plain HTTP."""
    schemes = ("https", "http") if private else ("https",)
    return Fetcher(hosts, DEFAULT_LIMITS.max_bytes, timeout_s, schemes=schemes, private=private)


def read_image(uri: str, root: str, web: Fetcher = NOWHERE, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The encoded bytes of the picture at `uri`.

    A view (tasks/queries/view_store.py) is read from where its address says; of an address with a box (tasks/catalog/photo_box.py)
    comes what lies in it. A relative uri is relative to `root` (a folder or s3://
    prefix); an absolute path or a file:// uri must lie below it. s3:// is read with the process's own credentials; https:// as `web`
    allows. Raises ImageRejected with a reason: outside_root, missing, too_many_bytes, forbidden_host, forbidden_address,
    forbidden_scheme, redirects, timeout, unreachable, unreadable. Raises StoreAway where s3:// itself does not answer: no picture is at
    fault then, and none is left out for it.
    """
    whole, box = split_box(uri)
    if box is not None:
        return cut_out(read_image(whole, root, web, limits), box, limits)
    scheme = addresses.scheme(uri)
    if scheme in ("http", "https"):
        if not web.hosts:
            raise ImageRejected("forbidden_host", f"{uri}: no host is allowed; set VITRINE_IMAGE_HOSTS to fetch pictures")
        return web.fetch(uri)
    if view_store.is_view(uri):
        return view_store.read_view(uri)
    if scheme == "s3" or (not scheme and root.startswith("s3://")):
        return _read_object(uri if scheme else _inside_prefix(uri, root), limits)
    if scheme not in ("", "file"):
        raise ImageRejected("forbidden_scheme", f"{uri}: pictures are read from files, s3:// or https://, not {scheme}://")
    path = resolve(uri, root)
    try:
        found = path.stat()
        if not stat_module.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise ImageRejected("unreadable", f"{uri}: is {kind_of_file(found.st_mode)}, not a picture")
        size = found.st_size
        if size > limits.max_bytes:
            raise ImageRejected("too_many_bytes", f"{uri}: {size} bytes; at most {limits.max_bytes} are accepted")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageRejected("missing", f"{uri}: there is no such file below {root}") from None
    except OSError as error:
        raise ImageRejected("unreadable", f"{uri}: {error.strerror or error}") from None


def validator(uri: str, root: str, web: Fetcher = NOWHERE) -> str | None:
    """A token that changes when the picture does: size and time, or ETag. None when only reading can tell.

    Raises what `read_image` raises for a uri that leaves the root; a missing file has no validator.
    """
    scheme = addresses.scheme(uri)
    if scheme in ("http", "https"):
        try:
            return web.validator(uri)
        except ImageRejected:
            return None  # reading it says what is wrong, or succeeds where the host answers no HEAD
    if scheme == "s3" or (not scheme and root.startswith("s3://")):
        return storage.validator(uri if scheme else _inside_prefix(uri, root))
    return storage.validator(str(resolve(uri, root))) if scheme in ("", "file") else None


def resolve(uri: str, root: str) -> Path:
    """The real path of a local uri, symlinks resolved. Raises ImageRejected(outside_root) when it leaves the root."""
    base = storage.local_path(root).resolve()
    try:
        path = (base / addresses.local_path(uri)).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise ImageRejected("unreadable", f"{uri!r}: {error}") from None
    if not path.is_relative_to(base):
        raise ImageRejected("outside_root", _outside(uri, str(base)))
    return path


def kind_of_file(mode: int) -> str:
    """What a file of this mode (st_mode) is, in words."""
    kinds = {stat_module.S_IFDIR: "a folder", stat_module.S_IFIFO: "a pipe", stat_module.S_IFSOCK: "a socket"}
    return kinds.get(stat_module.S_IFMT(mode), "a device")


def _inside_prefix(uri: str, root: str) -> str:
    if uri.startswith("/") or ".." in uri.split("/"):
        raise ImageRejected("outside_root", _outside(uri, root))
    return storage.join(root, uri)


def _outside(uri: str, root: str) -> str:
    return (
        f"{uri}: lies outside the pictures' folder {root}; a picture's path is relative to that folder (the catalogue's own, the SQLite "
        "file's, or for PostgreSQL image_root in VITRINE_CATALOG) or an absolute path below it"
    )


def _read_object(uri: str, limits: ImageLimits) -> bytes:
    try:
        size = storage.size(uri)
        if size is None:
            raise FileNotFoundError
        if size > limits.max_bytes:
            raise ImageRejected("too_many_bytes", f"{uri}: {size} bytes; at most {limits.max_bytes} are accepted")
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise ImageRejected("missing", f"{uri}: there is no such object") from None
    except OSError as error:
        raise ImageRejected("unreadable", f"{uri}: {error}") from None
