"""Exports an index version as a self-contained folder that a replica serves without a registry."""

import json
import shutil
from pathlib import Path

from serving.contract.binding import SIGNATURE_TAG
from serving.contract.files import atomic_write, verify
from tasks.registry import INDEX_MODEL, Registry


def export_release(registry: Registry, folder: Path, version: str) -> str:
    """Writes the layout of serving.versions.version_source.FolderSource, `aliases.json` last; returns the version.

    The manifest is written as it was registered, with its signature, also where that was made later.
    """
    found = registry.version(INDEX_MODEL, version)
    data, manifest = registry.manifest_data(found), registry.manifest_of(found)
    if not manifest.signature and SIGNATURE_TAG in found.tags:
        data = json.dumps(json.loads(data) | {"signature": found.tags[SIGNATURE_TAG]}, indent=1).encode()
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    for ref in manifest.files():
        if not (files / ref.sha256).is_file():
            verify(registry.fetch(ref.run_id, ref.path, folder / "incoming"), ref).replace(files / ref.sha256)
    encoder = folder / "encoders" / manifest.encoder.manifest.sha256
    shutil.copytree(registry.encoder_folder(manifest.encoder.version), encoder, dirs_exist_ok=True)
    (folder / found.version).mkdir(exist_ok=True)
    with atomic_write(folder / found.version / "manifest.json") as path:
        path.write_bytes(data)
    shutil.rmtree(folder / "incoming", ignore_errors=True)
    with atomic_write(folder / "aliases.json") as path:
        path.write_text(json.dumps({"live": found.version, "blue": found.version}))
    return found.version
