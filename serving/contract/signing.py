"""Ed25519 signatures of manifests.

A signature covers the canonical JSON of a manifest without its field `signature`: keys sorted, no white space, ASCII. It therefore
does not depend on how the file is laid out, nor on the fields that a reader knows. Keys are PEM files, as
`openssl genpkey -algorithm ed25519` writes them.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.contract.files import ContractError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FIELD = "signature"
MAX_KEY_BYTES = 64 * 1024


def split(data: bytes, what: str) -> tuple[bytes, str]:
    """The canonical JSON of a manifest without its signature, and the signature ("" for none).

    Raises ContractError where `data` is no JSON object, or names a field twice, so that two readers could see two manifests.
    """
    try:
        document = json.loads(data, object_pairs_hook=_once)
        if not isinstance(document, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{what}: its manifest cannot be checked against a signature: {str(error) or 'too deep'}") from None
    signature = document.pop(FIELD, "")
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return canonical.encode(), signature if isinstance(signature, str) else ""


def sign(data: bytes, key: "Ed25519PrivateKey", what: str = "the manifest") -> str:
    """The signature of a manifest's JSON, base64. The same manifest and key give the same signature."""
    return base64.b64encode(key.sign(split(data, what)[0])).decode()


def is_signed_by(canonical: bytes, signature: str, key: "Ed25519PublicKey") -> bool:
    """Whether the signature (base64) is this key's over the canonical JSON."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature, validate=True), canonical)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def read_private_key(path: str, setting: str) -> "Ed25519PrivateKey":
    """The private key of a PEM file. Raises ValueError naming the setting."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _read(path, setting, lambda data: load_pem_private_key(data, None), "private")
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{setting}={path!r} is a key of another kind; one of Ed25519 is needed")
    return key


def read_public_key(path: str, setting: str) -> "Ed25519PublicKey":
    """The public key of a PEM file. Raises ValueError naming the setting."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _read(path, setting, load_pem_public_key, "public")
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{setting}={path!r} is a key of another kind; one of Ed25519 is needed")
    return key


def _read(path: str, setting: str, load: Any, kind: str) -> Any:
    try:
        with Path(path).open("rb") as stream:
            return load(stream.read(MAX_KEY_BYTES))
    except OSError as error:
        raise ValueError(f"{setting}={path!r} cannot be read: {error.strerror}") from None
    except Exception:  # cryptography raises ValueError, TypeError and its own, with text of several lines
        raise ValueError(f"{setting}={path!r} holds no {kind} key in PEM without a password") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is in it twice")
    return found
