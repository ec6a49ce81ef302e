"""`vitrine index`, over a real registry: what is checked is what the registry has, and what is wrong is one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.contract.files import ContractError, FileRef
from tasks.errors import VitrineError
from tasks.registry import ENCODER_PATH, INDEX_PATH
from tests.cli.conftest import run
from tests.registered import Shop
from tests.servers import free_port

pytestmark = pytest.mark.slow


def store(shop: Shop, ref: FileRef, content: bytes) -> None:
    """Replaces a file in the registry's store."""
    path = shop.home / "stored" / Path(ref.path).name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    shop.registry.client.log_artifact(ref.run_id, str(path), str(Path(ref.path).parent))


def test_damage_in_the_registrys_store_is_found_whatever_this_machine_fetched_before(shop: Shop) -> None:
    version = shop.version()
    shop.point(tested=version)
    ref = shop.registry.index_manifest(version).segments[0].table
    content = shop.registry.file(ref).read_bytes()
    assert run("index", "check", version) == run("index", "check", "tested"), "an alias will do"
    store(shop, ref, content[:-1] + b"?")
    status, told = run("index", "check", "tested")
    assert (status, f"{ref.path}: sha256" in told) == (1, True)
    assert f"index version {version}: broken: checksums" in told
    store(shop, ref, content)
    status, told = run("index", "check", version)
    assert (status, f"index version {version}: every check holds" in told) == (0, True)
    assert list((shop.home / "work").glob("check.*")) == [], "nothing of a check is left behind"


@pytest.mark.parametrize(
    ("bound", "sentence"), [(True, "it was replaced or damaged in the artifact store"), (False, "not a IndexManifest")]
)
def test_a_manifest_that_was_replaced_is_refused(bound: bool, sentence: str, shop: Shop) -> None:
    shop.bound = bound
    version = shop.version()
    run_id = shop.registry.version("product-index", version).run_id
    shop.registry.index_manifest(version)
    store(shop, FileRef(run_id=run_id, path=f"{INDEX_PATH}/manifest.json", sha256="0" * 64, bytes=0), b"{}")
    with pytest.raises(ContractError, match=sentence):
        run("index", "check", version)


def test_what_the_store_lost_is_a_broken_check_that_names_it(shop: Shop) -> None:
    version = shop.version(seed=7)
    manifest = shop.registry.index_manifest(version)
    encoder = manifest.encoder
    shop.registry.delete_artifact(encoder.run_id, f"{ENCODER_PATH}/student.fp32.onnx")
    status, told = run("index", "check", version)
    assert (status, f"index version {version}: broken: encoder" in told) == (1, True)
    assert "student.fp32.onnx: the file is missing" in told
    lost = manifest.segments[1].index
    assert lost is not None
    shop.registry.delete_artifact(lost.run_id, lost.path)
    status, told = run("index", "check", version)
    assert status == 1
    assert f"{lost.path} of run {lost.run_id} (product-index version {version}) is not in MLflow's store" in told


def test_what_cannot_be_checked_is_said(shop: Shop) -> None:
    taken = shop.snapshot("one")
    version = shop.version(snapshot=taken)
    (Path(taken.uri) / "_manifest.json").unlink()
    status, told = run("index", "check", version)
    assert status == 0
    assert "not checked" in told
    assert f"index version {version}: all else holds, not checked: snapshot" in told


def test_versions_are_named_by_alias_as_well(shop: Shop) -> None:
    first, second = shop.version(), shop.version()
    shop.point(live=second, tested=first)
    assert f"index version {first} is tested" in run("release", "show", "tested")[1]
    assert f"index version {first} -> {second}" in run("release", "diff", "tested", "live", "--photos", "0")[1]
    assert f"index version {first} in" in run("release", "export", str(shop.home / "out"), "--version", "tested")[1]
    with pytest.raises(VitrineError, match="product-index has no version 'never'"):
        run("release", "rollback", "--to", "never")
    with pytest.raises(VitrineError, match=f"no tuning report is kept of index version {first}"):
        run("index", "tuning", "tested")


def test_a_registry_that_is_away_is_one_sentence_and_soon(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    environment = os.environ | {"VITRINE_HOME": str(tmp_path), "VITRINE_MLFLOW_URI": uri, "COLUMNS": "300"}
    command = [sys.executable, "-W", "ignore", "-m", "tasks.cli", "index", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    said = f"vitrine: MLflow does not answer at {uri}; start it, or set VITRINE_MLFLOW_URI to where it is\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, said, "")
