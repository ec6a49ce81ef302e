"""How a CSV file is written: encoding, delimiter and decimal sign, found in the file or stated by VITRINE_CATALOG_CSV."""

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.errors import CatalogError, SettingsError

MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class CsvFormat:
    """`encoding` as Python names it, `delimiter` one character, `decimal` "." or ","; "" is found in the file (decimal: ".")."""

    encoding: str = ""
    delimiter: str = ""
    decimal: str = "."

    @classmethod
    def parse(cls, text: str) -> "CsvFormat":
        """Reads "encoding=cp1252 delimiter=semicolon decimal=comma", any of them. Raises SettingsError."""
        found = cls()
        for part in text.split():
            name, _, value = part.partition("=")
            wrong = SettingsError(
                f"VITRINE_CATALOG_CSV: {part!r} is not one of encoding=<name>, delimiter=comma|semicolon|tab|pipe, decimal=point|comma"
            )
            if name == "delimiter" and value in DELIMITERS:
                found = replace(found, delimiter=DELIMITERS[value])
            elif name == "decimal" and value in ("point", "comma"):
                found = replace(found, decimal="." if value == "point" else ",")
            elif name == "encoding":
                try:
                    "".encode(value)
                except LookupError:
                    raise wrong from None
                found = replace(found, encoding=value)
            else:
                raise wrong
        return found

    def of(self, path: Path) -> tuple["CsvFormat", list[str]]:
        """This format completed for a file, and the file's column names. Raises CatalogError naming the file."""
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
        if not head.strip():
            raise CatalogError(f"{path}: the file is empty")
        marked = next((name for mark, name in MARKS if head.startswith(mark)), "")
        encoding = marked or self.encoding or "utf-8"
        if not (marked or self.encoding) and b"\0" in head.partition(b"\n")[0]:
            raise CatalogError(
                f"{path}: its header holds NUL bytes; save it as UTF-8, or state its encoding: VITRINE_CATALOG_CSV=encoding=utf-16-le"
            )
        first = _first_record(path, head, encoding)
        delimiter = self.delimiter or max(DELIMITERS.values(), key=lambda d: len(_fields(first, d)))
        columns = [name.strip() for name in _fields(first, delimiter)]
        if len(columns) < 2:
            raise CatalogError(
                f"{path}: its first line holds one column, {first.strip()[:60]!r}; columns are separated by commas, semicolons, tabs or "
                "pipes, else: VITRINE_CATALOG_CSV=delimiter=…"
            )
        return CsvFormat(encoding, delimiter, self.decimal), columns


def _first_record(path: Path, head: bytes, encoding: str) -> str:
    """The header, which may hold line breaks within quotes."""
    cut = head if len(head) < HEAD_BYTES else head[: head.rfind(b"\n") + 1]
    try:
        text = cut.decode(encoding, errors="strict" if encoding.startswith("utf-16") else "surrogateescape")
    except (UnicodeDecodeError, LookupError) as error:
        raise CatalogError(f"{path}: it does not read as {encoding}: {error}") from None
    record = ""
    for line in io.StringIO(text, newline=""):
        record += line
        if record.count('"') % 2 == 0:
            break
    try:
        record.encode()
    except UnicodeEncodeError:
        raise CatalogError(f"{path}: its header is not UTF-8; state the encoding: VITRINE_CATALOG_CSV=encoding=cp1252") from None
    return record


def _fields(record: str, delimiter: str) -> list[str]:
    return next(csv.reader([record.rstrip("\r\n")], delimiter=delimiter), [])
