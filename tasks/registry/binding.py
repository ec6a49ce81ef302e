"""Binds versions to their manifests: the signature and the registry's tags that a new version gets."""

import hashlib
from typing import TYPE_CHECKING

from serving.contract.binding import GATES_VERDICT, MANIFEST_SHA256, BindingPolicy, verdict_of
from serving.contract.manifest import IndexManifest, ManifestT
from serving.contract.signing import read_private_key, sign
from tasks.errors import SettingsError
from tasks.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = "VITRINE_SIGNING_KEY"


def signing_key(settings: Settings) -> "Ed25519PrivateKey | None":
    """The key of the setting, None without one. Raises SettingsError for a file that holds none."""
    try:
        return read_private_key(settings.signing_key, KEY) if settings.signing_key else None
    except ValueError as error:
        raise SettingsError(str(error)) from None


def trust_of(settings: Settings) -> BindingPolicy:
    """What the pipeline asks of versions that it reads: signed by its own key, where it has one."""
    key = signing_key(settings)
    return BindingPolicy(key.public_key() if key else None, settings.require_bound)


def signed(manifest: ManifestT, key: "Ed25519PrivateKey | None") -> ManifestT:
    """The manifest with its signature; as it is without a key."""
    if key is None:
        return manifest
    return manifest.model_copy(update={"signature": sign(manifest.to_json().encode(), key)})


def binding_tags(data: bytes) -> dict[str, str]:
    """The tag that binds a version to the manifest that is uploaded for it, byte for byte."""
    return {MANIFEST_SHA256: hashlib.sha256(data).hexdigest()}


def index_tags(manifest: IndexManifest, data: bytes = b"") -> dict[str, str]:
    """All binding tags of an index version: of its manifest (`data`, by default as it is written), its gates, and its newest
    embedding commit."""
    tags = binding_tags(data or manifest.to_json().encode()) | {GATES_VERDICT: verdict_of(manifest.gates)}
    if manifest.embeddings:
        newest = manifest.embeddings[-1]
        counts = f"{newest.embedded} embedded, {newest.quarantined} quarantined"
        tags |= {"embeddings.uri": newest.uri, "embeddings.sha256": newest.sha256, "embeddings.counts": counts}
    return tags
