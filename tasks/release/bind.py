"""Binds versions of before to their manifests: the tags, and the signature, that new versions get when they are registered."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from serving.contract.binding import GATES_VERDICT, MANIFEST_SHA256, SIGNATURE_TAG, BindingPolicy
from serving.contract.manifest import EncoderManifest, IndexManifest, parse_manifest, read_manifest_bytes
from serving.contract.signing import is_signed_by, sign, split
from tasks.registry import ENCODER_MODEL, ENCODER_PATH, INDEX_MODEL, INDEX_PATH, Registry, Version
from tasks.registry.binding import binding_tags, index_tags

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def bind_versions(registry: Registry, versions: Iterable[Version], key: "Ed25519PrivateKey | None") -> list[str]:
    """Binds those of the versions that are not; returns a sentence for each. What they hold now is what is believed from now on."""
    return [done for version in versions if (done := bind_version(registry, version, key))]


def bind_version(registry: Registry, version: Version, key: "Ed25519PrivateKey | None") -> str:
    """Tags a version with its manifest's sha256 and, with a key, a signature; returns what was done, "" for nothing.

    The sha256 comes last: a version is bound once all of it is there. Raises ContractError for a version that is bound already, and
    whose manifest is another by now.
    """
    is_index = version.model == INDEX_MODEL
    what = f"{'index' if is_index else 'encoder'} version {version.version}"
    data = _manifest(registry, version)
    BindingPolicy().check(data, version.tags, what, "")
    tags: dict[str, str] = {}
    if MANIFEST_SHA256 not in version.tags:
        tags = index_tags(parse_manifest(data, IndexManifest, what), data) if is_index else _encoder_tags(version, data, what)
    if key is not None and not _is_signed(data, version, key, what):
        tags = {SIGNATURE_TAG: sign(data, key, what)} | tags
    digest = tags.pop(MANIFEST_SHA256, "")
    for name, value in [*tags.items(), *([(MANIFEST_SHA256, digest)] if digest else [])]:
        registry.tag_version(version.model, version.version, name, value)
    done = [*(["bound to its manifest"] if digest else []), *(["signed"] if SIGNATURE_TAG in tags else [])]
    return f"{what} is {' and '.join(done)}" if done else ""


def versions_to_bind(registry: Registry) -> list[Version]:
    """Every registered version: encoders first, since index versions name them."""
    return [*registry.versions(ENCODER_MODEL), *registry.versions(INDEX_MODEL)]


def _encoder_tags(version: Version, data: bytes, what: str) -> dict[str, str]:
    parse_manifest(data, EncoderManifest, what)
    verdict = version.tags.get("verdict", "")
    return binding_tags(data) | ({GATES_VERDICT: verdict} if verdict else {})


def _is_signed(data: bytes, version: Version, key: "Ed25519PrivateKey", what: str) -> bool:
    canonical, signature = split(data, what)
    return is_signed_by(canonical, signature or version.tags.get(SIGNATURE_TAG, ""), key.public_key())


def _manifest(registry: Registry, version: Version) -> bytes:
    """The manifest that lies in the artifact store now, past every cache."""
    name = f"{INDEX_PATH}/manifest.json" if version.model == INDEX_MODEL else f"{ENCODER_PATH}/encoder.json"
    with tempfile.TemporaryDirectory() as folder:
        return read_manifest_bytes(registry.fetch(version.run_id, name, Path(folder)))
