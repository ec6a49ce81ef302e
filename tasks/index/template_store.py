"""Stores templates by sha256, so that other workers build from them and the next build can reuse the live version's."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from serving.contract.manifest import IndexManifest
from tasks import storage
from tasks.errors import StoreAway, VitrineError
from tasks.index.template import Template
from tasks.registry import INDEX_MODEL, INDEX_PATH, Registry

TEMPLATE_FILE = "template.json"
"""An artifact of every run that built bases: its template, the encoder of its vectors, and where its file is kept."""


def store_template(template: Template, templates_uri: str) -> Template:
    """Stores the template's file below `templates_uri`, once; returns the template with the URI of that file."""
    if not template.file:
        return template
    uri = storage.join(templates_uri, f"{template.sha256}.faiss")
    if not storage.exists(uri):
        storage.write_bytes(uri, storage.read_verified(template.file, template.sha256))
    return replace(template, file=uri)


def template_json(template: Template, fingerprint: str) -> str:
    """The content of TEMPLATE_FILE for a stored template; `fingerprint` is the encoder's of its vectors."""
    return json.dumps({"template": template.to_json(), "fingerprint": fingerprint, "kept": template.file}, indent=1)


def live_template(registry: Registry, fingerprint: str) -> tuple[Template | None, str]:
    """The template of the live version's bases; or None and the reason.

    `fingerprint` is that of the encoder whose vectors are to be indexed: a template of another one is never taken over.
    """
    live = registry.alias(INDEX_MODEL, "live")
    if live is None:
        return None, "nothing is live yet"
    manifest = registry.index_manifest(live.version)
    if manifest.encoder.document_fingerprint != fingerprint:
        return None, f"version {live.version} is live and has another encoder"
    template, refused = template_of(registry, manifest)
    return template, refused and f"version {live.version} is live and {refused}"


def template_of(registry: Registry, manifest: IndexManifest) -> tuple[Template | None, str]:
    """The template of a version's bases, whose file is whole; or None and the reason. Raises StoreAway."""
    run_id = next(s.table.run_id for s in manifest.segments if s.kind == "base")
    path = f"{INDEX_PATH}/{TEMPLATE_FILE}"
    if path not in dict(registry.artifacts(run_id, INDEX_PATH)):
        return None, "its run kept no template"
    with tempfile.TemporaryDirectory() as folder:
        record = json.loads(registry.fetch(run_id, path, Path(folder)).read_text())
    template = Template.from_json(record["template"] | {"file": record["kept"]})
    if not template.file:
        return None, f"its family {template.family} has none"
    if not storage.exists(template.file):
        return None, "the file of its template is gone"
    try:
        storage.read_verified(template.file, template.sha256)
    except StoreAway:
        raise
    except VitrineError as error:
        return None, str(error)
    return template, ""
