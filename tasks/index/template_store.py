"""Stores templates by sha256, so that the next build can reuse the live version's without training."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from serving.contract.files import ContractError, FileRef, atomic_write, verify
from serving.contract.manifest import IndexManifest
from tasks import storage
from tasks.index.build import Template
from tasks.registry import INDEX_MODEL, INDEX_PATH, Registry

TEMPLATE_FILE = "template.json"
"""An artifact of every run that built bases: its template, the encoder of its vectors, and where its file is kept."""


def store_template(template: Template, fingerprint: str, templates_uri: str, folder: Path) -> None:
    """Stores the template's file below `templates_uri`, once, and writes its record to `folder`/template.json."""
    uri = storage.join(templates_uri, f"{template.sha256}.faiss") if template.file else ""
    if uri and not storage.exists(uri):
        with Path(template.file).open("rb") as source, storage.writer(uri) as target:
            shutil.copyfileobj(source, target)
    with atomic_write(folder / TEMPLATE_FILE) as path:
        path.write_text(json.dumps({"template": asdict(template), "fingerprint": fingerprint, "kept": uri}, indent=1))


def live_template(registry: Registry, fingerprint: str, folder: Path) -> tuple[Template | None, str]:
    """The template of the live version's bases, verified in `folder`; or None and the reason.

    `fingerprint` is that of the encoder whose vectors are to be indexed: a template of another one is never taken over.
    """
    live = registry.alias(INDEX_MODEL, "live")
    if live is None:
        return None, "nothing is live yet"
    manifest = registry.index_manifest(live.version)
    if manifest.encoder.document_fingerprint != fingerprint:
        return None, f"version {live.version} is live and has another encoder"
    template, refused = template_of(registry, manifest, folder)
    return template, refused and f"version {live.version} is live and {refused}"


def template_of(registry: Registry, manifest: IndexManifest, folder: Path) -> tuple[Template | None, str]:
    """The template of a version's bases, verified in `folder`; or None and the reason."""
    run_id = next(s.index.run_id for s in manifest.segments if s.kind == "base" and s.index is not None)
    path = f"{INDEX_PATH}/{TEMPLATE_FILE}"
    if path not in dict(registry.artifacts(run_id, INDEX_PATH)):
        return None, "its run kept no template"
    record = json.loads(registry.fetch(run_id, path, folder).read_text())
    template = Template(**record["template"])
    if not template.file:
        return None, f"its family {template.family} has none"
    if not storage.exists(record["kept"]):
        return None, "the file of its template is gone"
    target = folder / f"{template.sha256}.faiss"
    with atomic_write(target) as whole:
        whole.write_bytes(storage.read_bytes(record["kept"]))
    try:
        verify(target, FileRef(path=target.name, sha256=template.sha256, bytes=target.stat().st_size))
    except ContractError as error:
        return None, str(error)
    return Template(**(record["template"] | {"file": str(target)})), ""
