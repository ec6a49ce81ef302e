"""Addresses (URIs and local paths): their scheme and local path, and how they are shown without secrets."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

MASK = "********"
SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
PREFIXED = re.compile(rf"(?:[a-z_]+:)?{SCHEME.pattern}")
"""An address, or one behind the kind of what is there: outbox:postgresql://…, delta:s3://…."""
ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")
ENCODED = re.compile(r"(?:[^\s@/%]|%[0-9a-fA-F]{2})*")
"""A user and password that every client reads alike."""
SECRET_PARAMETER = re.compile(r"pass|pwd|secret|token|credential|signature|^sig$|key(_?id)?$", re.IGNORECASE)


def scheme(address: str) -> str:
    """The scheme of an address in lower case; "" for a plain path. Never raises, whatever the text holds."""
    found = SCHEME.match(address)
    return found[1].lower() if found else ""


def local_path(address: str) -> Path:
    """The path of a local address: a plain path as it is, a file:// URI percent-decoded (RFC 8089)."""
    if scheme(address) != "file":
        return Path(address)
    return Path(unquote(address[len("file://") :]).removeprefix("localhost"))


def sqlite_path(address: str) -> Path:
    """The file of sqlite:///file. What follows is a path as it is, never percent-decoded (as in SQLAlchemy)."""
    return Path(address[len("sqlite:///") :])


def sqlite_uri(file: Path, mode: str = "rwc") -> str:
    """The URI by which SQLite opens a file whose name may hold ?, # or %; mode: ro, rw or rwc."""
    return f"file:{quote(str(file))}?mode={mode}"


def is_url(address: str) -> bool:
    """Whether an address has a host, a number for a port if it has one, and no white space."""
    try:
        parts = urlsplit(address)
        return bool(parts.hostname) and parts.port != 0 and not any(c.isspace() for c in address)
    except ValueError:  # a port that is no number, half an address of IPv6
        return False


def without_secrets(address: str) -> str:
    """An address to be shown: the user and password before its host, and the values of password-like parameters, are masked."""
    found = PREFIXED.match(address)
    if not found:
        return address
    start = found[0]
    rest, mark, query = _parameters_apart(address[found.end() :])
    userinfo = _userinfo(rest)
    if userinfo:
        rest = f"{MASK}@{rest[len(userinfo) + 1 :]}"
    parts = [_shown_parameter(part) for part in query.split("&")]
    return start + rest + mark + "&".join(parts)


def shown_setting(address: str) -> str:
    """What was set as an address, to be shown although it may be none: whatever has no scheme and may hold a password is masked."""
    return without_secrets(address) if scheme(address) or not {"@", "="} & set(address) else MASK


def without_userinfo(address: str) -> str:
    """An address that people may open: without the user and password before its host. Its parameters stay."""
    found = SCHEME.match(address)
    if not found:
        return address
    rest, mark, query = _parameters_apart(address[found.end() :])
    userinfo = _userinfo(rest)
    return found[0] + (rest[len(userinfo) + 1 :] if userinfo else rest) + mark + query


def userinfo_encoded(address: str) -> bool:
    """Whether an address's user and password are percent-encoded where they must be. Where not, clients show parts of them in errors."""
    found = SCHEME.match(address)
    userinfo = _userinfo(_parameters_apart(address[found.end() :])[0]) if found else ""
    try:
        unquote(userinfo, errors="strict")
    except UnicodeDecodeError:
        return False
    return ENCODED.fullmatch(userinfo) is not None


def hide_secrets(text: str, *addresses: str) -> str:
    """A text to be shown, such as a library's error: secrets of the addresses in it, and of `addresses`, are masked."""
    for secret in sorted({s for address in addresses for s in secret_texts(address)}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return ADDRESS.sub(lambda found: without_secrets(found[0]), text)


def error_line(error: BaseException, most: int = 500) -> str:
    """The first line of a library's error, at most `most` characters, to be shown: secrets of the addresses in it are masked."""
    return next(iter(hide_secrets(str(error)).strip().splitlines()), type(error).__name__)[:most]


def _userinfo(rest: str) -> str:
    """What stands before the @ of an address without its scheme and query; "" for none.

    A password may hold / and @ although it should be percent-encoded; a path may hold @ (cdn.example/a@2x.jpg), so an @ behind a
    slash ends a password only where a colon without a port number stands before that slash.
    """
    if rest.startswith("/"):
        return ""
    authority = rest.partition("/")[0]
    within = rest if _unfinished(authority) or _continues(rest) else authority
    return within.rpartition("@")[0]


def _parameters_apart(rest: str) -> tuple[str, str, str]:
    """Splits an address without its scheme at the ? before its parameters; one in a password that is not percent-encoded is none."""
    before, mark, query = rest.partition("?")
    authority = before.partition("/")[0]
    password, at, after = query.partition("@")
    if at and (_unfinished(authority) or (before.endswith("@") and "=" not in password)):
        after, mark, query = after.partition("?")
        before = f"{before}?{password}{at}{after}"
    return before, mark, query


def _unfinished(authority: str) -> bool:
    """Whether what stands before the first slash is the beginning of a user and password: a colon, and no port behind it."""
    return "@" not in authority and ":" in authority and not authority.rpartition(":")[2].isdecimal()


def _continues(rest: str) -> bool:
    """Whether a password with an @ goes on behind a slash: shop:a@b/c@host."""
    authority, _, path = rest.partition("/")
    host = path.rpartition("@")[2].partition("/")[0]
    return ":" in authority.partition("@")[0] and "@" in authority and "@" in path and bool(host)


def _shown_parameter(part: str) -> str:
    name, equals, value = part.partition("=")
    if equals and value and SECRET_PARAMETER.search(unquote(name)):
        return f"{name}={MASK}"
    return f"{name}={without_secrets(value)}" if SCHEME.match(value) else part


def secret_texts(address: str) -> Iterator[str]:
    """The secret texts of an address, as written and percent-decoded; those shorter than three characters are left out."""
    found = PREFIXED.match(address)
    if not found:
        return
    rest, _, query = _parameters_apart(address[found.end() :])
    user, colon, password = _userinfo(rest).partition(":")
    if not colon and found[1].lower() in ("http", "https"):
        password = user  # a token alone
    values = [value for name, value in parse_qsl(query) if SECRET_PARAMETER.search(name)]
    for secret in (password, unquote(password), *values, *(quote(v, safe="") for v in values)):
        if len(secret) > 2:
            yield secret
