"""Signatures: over what a manifest says, not over how it is laid out; and keys that are none are refused by their setting."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contract.files import ContractError
from serving.contract.signing import is_signed_by, read_private_key, read_public_key, sign, split
from tests.keys import private_pem, public_pem

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=10,
)  # fmt: skip
documents = st.dictionaries(st.text().filter(lambda name: name != "signature"), values, max_size=5)


@settings(max_examples=100, deadline=None)
@given(documents)
def test_a_signature_holds_for_the_same_manifest_in_any_layout(document: dict[str, Any]) -> None:
    signature = sign(json.dumps(document).encode(), KEY)
    signed = dict(reversed(list((document | {"signature": signature}).items())))
    canonical, found = split(json.dumps(signed, indent=2, ensure_ascii=False).encode(errors="surrogatepass"), "it")
    assert found == signature
    assert is_signed_by(canonical, found, KEY.public_key())


@settings(max_examples=100, deadline=None)
@given(documents, st.text(min_size=1), values)
def test_a_signature_holds_for_no_other_manifest(document: dict[str, Any], name: str, value: Any) -> None:
    signature = sign(json.dumps(document).encode(), KEY)
    other = json.dumps({k: v for k, v in document.items() if k != name} | {f"{name}+": value}).encode()
    assert not is_signed_by(split(other, "it")[0], signature, KEY.public_key())


@pytest.mark.parametrize("signature", ["", "no base64", "AAAA", "A" * 86 + "==", "\udcff"])
def test_what_is_no_signature_is_a_wrong_one(signature: str) -> None:
    assert not is_signed_by(b"{}", signature, KEY.public_key())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Expecting value"), (b"\xff", "decode"), (b"[1]", "it is no object"), (b'{"id": 1, "id": 2}', "a field is in it twice"),
        (b'{"a": {"b": 1, "b": 1}}', "a field is in it twice"), (b"[" * 100_000, "recursion"), (b"1" * 5000, "digits"),
    ],
)  # fmt: skip
def test_what_two_readers_could_read_differently_is_not_checked_at_all(data: bytes, why: str) -> None:
    with pytest.raises(ContractError, match=f"^version 3: its manifest cannot be checked against a signature: .*{why}"):
        split(data, "version 3")


def test_keys_are_read_from_the_files_that_openssl_writes(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(private_pem(KEY))
    (tmp_path / "key.pub.pem").write_bytes(public_pem(KEY))
    private, public = read_private_key(str(tmp_path / "key.pem"), "A"), read_public_key(str(tmp_path / "key.pub.pem"), "B")
    assert is_signed_by(split(b"{}", "it")[0], sign(b"{}", private), public)


@pytest.mark.parametrize("read", [read_private_key, read_public_key])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file"),
        (b"not a key", "holds no (private|public) key in PEM"),
        ("other kind", "another kind"),
    ],
)
def test_a_file_that_holds_no_such_key_names_its_setting(read: Any, content: Any, why: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    if content == "other kind":
        other = generate_private_key(SECP256R1())
        content = private_pem(other) if read is read_private_key else public_pem(other)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^VITRINE_KEY='.*key\.pem' (is a key of )?{why}") as refused:
        read(str(path), "VITRINE_KEY")
    assert "\n" not in str(refused.value)
