"""What binds a version to its manifest, as a table: tags and signatures that are right, wrong or missing."""

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from serving.contract.binding import GATES_VERDICT, MANIFEST_SHA256, SIGNATURE_TAG, BindingPolicy, check_verdict, verdict_of
from serving.contract.files import ContractError
from serving.contract.manifest import Gate
from serving.contract.signing import sign

OURS, THEIRS = (Ed25519PrivateKey.from_private_bytes(seed * 32) for seed in (b"o", b"t"))
PLAIN = b'{"id": "made"}'
BOUND = {MANIFEST_SHA256: hashlib.sha256(PLAIN).hexdigest()}
SIGNED = json.dumps({"id": "made", "signature": sign(PLAIN, OURS)}).encode()


@pytest.mark.parametrize(
    ("data", "tags", "trust", "bound"),
    [
        (PLAIN, BOUND, BindingPolicy(), True),
        (PLAIN, BOUND, BindingPolicy(require_bound=True), True),
        (PLAIN, {}, BindingPolicy(), False),
        (SIGNED, {}, BindingPolicy(OURS.public_key()), False),
        (SIGNED, {MANIFEST_SHA256: hashlib.sha256(SIGNED).hexdigest()}, BindingPolicy(OURS.public_key(), True), True),
        (PLAIN, BOUND | {SIGNATURE_TAG: sign(PLAIN, OURS)}, BindingPolicy(OURS.public_key(), True), True),
    ],
)
def test_what_is_right_is_taken_and_whether_it_is_bound_is_said(
    data: bytes, tags: dict[str, str], trust: BindingPolicy, bound: bool
) -> None:
    assert trust.check(data, tags, "index version 3", "bind it") is bound


SWAPPED = "index version 3: its manifest has sha256 .*, where the registry says .*: it was replaced or damaged"
UNSIGNED = "index version 3 is not signed, and a key is set that .* where the pipeline has its key: bind it$"
CHANGED = "index version 3: its manifest is not what was signed, or was signed with another key"


@pytest.mark.parametrize(
    ("data", "tags", "trust", "sentence"),
    [
        (PLAIN + b" ", BOUND, BindingPolicy(), SWAPPED),
        (
            PLAIN,
            {},
            BindingPolicy(require_bound=True),
            r"index version 3 is not bound .*VITRINE_REQUIRE_BOUND is set.* trust it: bind it$",
        ),
        (PLAIN, BOUND, BindingPolicy(OURS.public_key()), UNSIGNED),
        (SIGNED, {}, BindingPolicy(THEIRS.public_key()), CHANGED),
        (SIGNED.replace(b"made", b"else"), {}, BindingPolicy(OURS.public_key()), CHANGED),
        (PLAIN, BOUND | {SIGNATURE_TAG: sign(PLAIN, THEIRS)}, BindingPolicy(OURS.public_key()), CHANGED),
        (b"[]", {}, BindingPolicy(OURS.public_key()), "cannot be checked against a signature: it is no object"),
    ],
)
def test_what_is_wrong_is_refused_in_a_sentence(data: bytes, tags: dict[str, str], trust: BindingPolicy, sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence) as refused:
        trust.check(data, tags, "index version 3", "bind it")
    assert "\n" not in str(refused.value)


def test_a_version_that_did_not_pass_its_gates_is_refused_and_one_of_before_is_not() -> None:
    good, bad = (Gate(name=n, value=1, threshold=1, passed=n == "churn", reason="") for n in ("churn", "photo_recall"))
    assert verdict_of([good]) == "passed"
    assert verdict_of([good, bad]) == "failed: photo_recall"
    assert verdict_of([]) == "failed: no gate was measured"
    check_verdict({}, "index version 3")
    check_verdict({GATES_VERDICT: "passed"}, "index version 3")
    with pytest.raises(ContractError, match=r"index version 3 did not pass its gates \(gates\.verdict: failed: photo_recall\)"):
        check_verdict({GATES_VERDICT: verdict_of([good, bad])}, "index version 3")
