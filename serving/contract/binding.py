"""What binds a registered version to its manifest: tags in the registry, and a signature where a key is used.

Artifacts and registry are two stores with two sets of rights. Whoever can write artifacts alone cannot make a manifest whose sha256
is the registered one; whoever can write both cannot sign it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.contract.files import ContractError
from serving.contract.manifest import Gate
from serving.contract.signing import is_signed_by, read_public_key, split

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MANIFEST_SHA256 = "manifest.sha256"
GATES_VERDICT = "gates.verdict"
SIGNATURE_TAG = "manifest.signature"
"""A signature made after the version was: its manifest cannot be changed any more."""
PASSED = "passed"


def verdict_of(gates: Iterable[Gate]) -> str:
    """The tag's text: "passed", or which gates failed. Where none was measured, none was passed."""
    gates = tuple(gates)
    failed = [gate.name for gate in gates if not gate.passed]
    return PASSED if gates and not failed else f"failed: {', '.join(failed) or 'no gate was measured'}"


@dataclass(frozen=True)
class BindingPolicy:
    """What a reader of manifests asks for. `key`: that they are signed by it; `require_bound`: that they are bound by tags."""

    key: "Ed25519PublicKey | None" = None
    require_bound: bool = False

    @classmethod
    def load(cls, key_file: str, require_bound: bool, setting: str = "VITRINE_VERIFY_KEY") -> "BindingPolicy":
        """From the settings; `key_file` is "" for none. Raises ValueError naming the setting of a file that holds no key."""
        return cls(read_public_key(key_file, setting) if key_file else None, require_bound)

    def check(self, data: bytes, tags: Mapping[str, str], what: str, remedy: str) -> bool:
        """Whether the registry's tags bind these bytes; `what` names the version, `remedy` is what to do when it is trusted.

        Raises ContractError where they bind others, where there are none and they are asked for, or where the signature is missing
        or wrong and a key is set.
        """
        bound = tags.get(MANIFEST_SHA256, "")
        if bound and bound != (found := hashlib.sha256(data).hexdigest()):
            raise ContractError(
                f"{what}: its manifest has sha256 {found[:12]}…, where the registry says {bound[:12]}… ({MANIFEST_SHA256}): it was "
                "replaced or damaged in the artifact store; restore it from a copy, or go to another version"
            )
        if not bound and self.require_bound:
            raise ContractError(
                f"{what} is not bound to its manifest (it has no tag {MANIFEST_SHA256}) and VITRINE_REQUIRE_BOUND is set; if you "
                f"trust it: {remedy}"
            )
        self.check_signature(data, tags.get(SIGNATURE_TAG, ""), what, remedy)
        return bool(bound)

    def check_signature(self, data: bytes, detached: str, what: str, remedy: str) -> None:
        """Raises ContractError unless the manifest, or a `detached` signature, is signed by the key; never without a key."""
        if self.key is None:
            return
        canonical, signature = split(data, what)
        signature = signature or detached
        if not signature:
            raise ContractError(
                f"{what} is not signed, and a key is set that its manifest has to be signed by; if you trust it, where the pipeline "
                f"has its key: {remedy}"
            )
        if not is_signed_by(canonical, signature, self.key):
            raise ContractError(
                f"{what}: its manifest is not what was signed, or was signed with another key than the one that is set; restore it "
                "from a copy, or go to another version"
            )


def check_verdict(tags: Mapping[str, str], what: str) -> None:
    """Raises ContractError for a version that the registry says did not pass its gates. Versions of before have no such tag."""
    verdict = tags.get(GATES_VERDICT, PASSED)
    if verdict != PASSED:
        raise ContractError(f"{what} did not pass its gates ({GATES_VERDICT}: {verdict}); point the alias to one that did")
