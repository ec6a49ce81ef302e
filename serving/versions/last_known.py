"""What a replica last read of the registry, kept on its disk: with it and the cached files it starts while MLflow is away.

When it is read instead of MLflow is in version_source.py (manifests, tags) and slots.py (aliases).
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict

from serving.contract.addresses import without_secrets
from serving.contract.files import FrozenModel, atomic_write
from serving.versions.disk_cache import PRIVATE

log = logging.getLogger(__name__)

ALIASES = "aliases.json"


class KeptRecord(FrozenModel):
    """One file; `registry` is the address that it was read from, without secrets."""

    registry: str


class KeptAliases(KeptRecord):
    """The version of each alias, "" for none."""

    aliases: dict[str, str]


class KeptVersion(KeptRecord):
    """A version's tags, and its manifest byte for byte (base64), whatever it holds: it is checked when it is used."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    manifest: bytes
    tags: dict[str, str]


R = TypeVar("R", bound=KeptRecord)


class LastKnown:
    """`folder`/aliases.json, and `folder`/<version>.json with the manifest and tags of each version that an alias names.

    What was read of another registry than `uri`, or is no such file, does not count. A disk that is full keeps nothing, which is told
    in the log. The folder is its owner's alone (0700): its tags count as the registry's.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.registry = folder, without_secrets(uri)

    def keep_aliases(self, aliases: dict[str, str]) -> None:
        """Keeps the aliases, and of the versions those that they name."""
        self._write(ALIASES, KeptAliases(registry=self.registry, aliases=aliases))
        named = {ALIASES, *(f"{version}.json" for version in aliases.values())}
        for path in self.folder.glob("*.json"):
            if path.name not in named:
                with suppress(OSError):  # one file too many; the aliases were read all the same
                    path.unlink()

    def aliases(self) -> dict[str, str]:
        """The aliases as last read; {} where nothing was."""
        kept = self._read(ALIASES, KeptAliases)
        return kept.aliases if kept is not None else {}

    def keep_version(self, version: str, manifest: bytes, tags: dict[str, str]) -> None:
        self._write(f"{version}.json", KeptVersion(registry=self.registry, manifest=manifest, tags=tags))

    def version(self, version: str) -> tuple[bytes, dict[str, str]] | None:
        """The manifest (its bytes) and tags of a version as last read; None where they were not."""
        kept = self._read(f"{version}.json", KeptVersion)
        return (kept.manifest, kept.tags) if kept is not None else None

    def _write(self, name: str, record: KeptRecord) -> None:
        try:
            self.folder.mkdir(PRIVATE, parents=True, exist_ok=True)
            with atomic_write(self.folder / name) as path:
                path.write_text(record.model_dump_json(), "utf-8")
        except OSError as error:
            log.warning("what was read of the registry is not kept for a start without it: %s", error)

    def _read(self, name: str, kind: type[R]) -> R | None:
        """The record in a file; None where it is not there, is no such record (a ValueError), or of another registry."""
        with suppress(OSError, ValueError):
            record = kind.model_validate_json((self.folder / name).read_bytes())
            return record if record.registry == self.registry else None
        return None
