"""Exports an index version as a self-contained folder that a replica serves without a registry."""

import json
import shutil
from pathlib import Path

from serving.contract.files import atomic_write, verify
from tasks.registry import INDEX_MODEL, Registry


def export_release(registry: Registry, folder: Path, version: str) -> str:
    """Writes the layout of serving.versions.version_source.FolderSource, `aliases.json` last; returns the version."""
    found = registry.version(INDEX_MODEL, version)
    manifest = registry.index_manifest(found.version)
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    for ref in manifest.files():
        if not (files / ref.sha256).is_file():
            verify(registry.fetch(ref.run_id, ref.path, folder / "incoming"), ref).replace(files / ref.sha256)
    encoder = folder / "encoders" / manifest.encoder.manifest.sha256
    shutil.copytree(registry.encoder_folder(manifest.encoder.version), encoder, dirs_exist_ok=True)
    (folder / found.version).mkdir(exist_ok=True)
    with atomic_write(folder / found.version / "manifest.json") as path:
        path.write_text(manifest.model_dump_json(indent=1))
    shutil.rmtree(folder / "incoming", ignore_errors=True)
    with atomic_write(folder / "aliases.json") as path:
        path.write_text(json.dumps({"live": found.version, "blue": found.version}))
    return found.version
