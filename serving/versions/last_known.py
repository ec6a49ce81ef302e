"""What a replica last read of the registry, kept on its disk: with it and the cached files it starts while MLflow is away."""

import json
import logging
from contextlib import suppress
from pathlib import Path

from serving.contract.addresses import without_secrets
from serving.contract.files import atomic_write

log = logging.getLogger(__name__)

ALIASES = "aliases.json"


class LastKnown:
    """`folder`/aliases.json, and `folder`/<version>.json with the manifest and tags of each version that an alias names.

    What was read of another registry than `uri` does not count. A disk that is full keeps nothing, which is told in the log.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.registry = folder, without_secrets(uri)

    def keep_aliases(self, aliases: dict[str, str]) -> None:
        """Keeps the aliases, and of the versions those that they name."""
        self._write(ALIASES, {"registry": self.registry, "aliases": aliases})
        named = {ALIASES, *(f"{version}.json" for version in aliases.values())}
        for path in self.folder.glob("*.json"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def aliases(self) -> dict[str, str]:
        """The aliases as last read; {} where nothing was."""
        kept = self._read(ALIASES)
        return {str(k): str(v) for k, v in kept["aliases"].items()} if kept.get("registry") == self.registry else {}

    def keep_version(self, version: str, manifest: bytes, tags: dict[str, str]) -> None:
        self._write(f"{version}.json", {"registry": self.registry, "manifest": manifest.decode(), "tags": tags})

    def version(self, version: str) -> tuple[bytes, dict[str, str]] | None:
        """The manifest (its bytes) and tags of a version as last read; None where they were not."""
        kept = self._read(f"{version}.json")
        return (kept["manifest"].encode(), dict(kept["tags"])) if kept.get("registry") == self.registry else None

    def _write(self, name: str, value: dict) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.folder / name) as path:
                path.write_text(json.dumps(value), "utf-8")
        except OSError as error:
            log.warning("what was read of the registry is not kept for a start without it: %s", error)

    def _read(self, name: str) -> dict:
        with suppress(OSError, ValueError):
            return dict(json.loads((self.folder / name).read_text("utf-8")))
        return {}
