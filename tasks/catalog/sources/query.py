"""VITRINE_CATALOG_QUERY: the SELECT that stands for a database's table `products`."""

import re

from tasks.errors import SettingsError

SETTING = "VITRINE_CATALOG_QUERY"
PIECE = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)|(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|(?P<dollar>\$\w*\$).*?(?P=dollar))|(?P<end>;)"""
    r"""|(?P<open>\()|(?P<close>\))|(?P<unclosed>['"]|/\*)""",
    re.DOTALL,
)


def one_select(text: str) -> str:
    """The query without its final semicolon. Raises SettingsError where it is not one SELECT (or WITH … SELECT)."""
    query = text.strip()
    ends: list[int] = []
    depth = 0
    for piece in PIECE.finditer(query):
        if piece["unclosed"]:
            raise SettingsError(f"{SETTING}: a {piece['unclosed']} in it is not closed")
        depth += bool(piece["open"]) - bool(piece["close"])
        if depth < 0:
            raise SettingsError(f"{SETTING}: a parenthesis is closed that was not opened")
        if piece["end"]:
            ends.append(piece.start())
    if ends and re.sub(PIECE, lambda p: "" if p["comment"] or p["end"] else p[0], query[ends[0] :]).strip():
        raise SettingsError(f"{SETTING}: more than one statement; give one SELECT")
    query = (query[: ends[0]] if ends else query).strip()
    bare = re.sub(PIECE, lambda p: " " if p["comment"] else p[0], query).strip()
    if query and not re.match(r"(select|with)\b", bare, re.IGNORECASE):
        raise SettingsError(f"{SETTING}: it begins with {bare.split()[0][:40]!r}; a SELECT is expected")
    return query
