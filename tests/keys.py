"""Signing keys for tests, in the files that `openssl genpkey` and `openssl pkey -pubout` write."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


def private_pem(key: Any) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_files(folder: Path, seed: bytes = b"k") -> tuple[Ed25519PrivateKey, Path, Path]:
    """A key, and the paths of its private and its public file."""
    key = Ed25519PrivateKey.from_private_bytes(seed * 32)
    private, public = folder / f"{seed.hex()}.pem", folder / f"{seed.hex()}.pub.pem"
    private.write_bytes(private_pem(key))
    public.write_bytes(public_pem(key))
    return key, private, public
