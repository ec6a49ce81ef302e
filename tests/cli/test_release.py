"""`vitrine release bind`, over a real registry: versions of before get their tags and signatures, once."""

from pathlib import Path

import pytest

from serving.contract.binding import GATES_VERDICT, MANIFEST_SHA256, SIGNATURE_TAG
from serving.contract.files import ContractError
from tasks.errors import SettingsError
from tasks.registry import ENCODER_MODEL, INDEX_MODEL
from tests.cli.conftest import run
from tests.keys import key_files
from tests.registered import Shop

pytestmark = pytest.mark.slow


def test_a_version_of_before_and_its_encoder_are_bound_and_then_there_is_nothing_to_do(
    shop: Shop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop.bound = False
    version = shop.version()
    encoder = shop.registry.index_manifest(version).encoder.version
    monkeypatch.setenv("VITRINE_REQUIRE_BOUND", "1")
    with pytest.raises(ContractError, match=f"is not bound to its manifest .*: vitrine release bind {version}$"):
        run("release", "show", version)
    told = run("release", "bind", version)[1]
    assert f"index version {version} is bound to its manifest" in told
    assert f"encoder version {encoder} is bound to its manifest" in told
    assert run("release", "show", version)[0] == 0
    tags = shop.registry.version(INDEX_MODEL, version).tags
    assert (len(tags[MANIFEST_SHA256]), tags[GATES_VERDICT]) == (64, "passed")
    assert shop.registry.version(ENCODER_MODEL, encoder).tags[GATES_VERDICT] == "passed"
    assert run("release", "bind", version)[1] == "nothing to do: every version is bound to its manifest\n"


def test_with_a_key_what_is_bound_is_signed_as_well(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = shop.version()
    monkeypatch.setenv("VITRINE_SIGNING_KEY", str(key_files(tmp_path)[1]))
    with pytest.raises(ContractError, match=f"index version {version} is not signed, .*: vitrine release bind {version}$"):
        run("release", "show", version)
    assert f"index version {version} is signed\n" in run("release", "bind", version)[1]
    assert SIGNATURE_TAG in shop.registry.version(INDEX_MODEL, version).tags
    assert run("release", "show", version)[0] == 0
    assert "bound to its manifest and signed\n" in run("release", "bind", version)[1]


def test_a_key_that_is_none_is_named_by_its_setting(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRINE_SIGNING_KEY", "/nowhere/signing.pem")
    with pytest.raises(SettingsError, match=r"VITRINE_SIGNING_KEY='/nowhere/signing\.pem' cannot be read: No such file"):
        run("release", "bind")
