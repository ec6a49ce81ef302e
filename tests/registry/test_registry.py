"""The registry against a real MLflow server: what is made twice is made once, and aliases say what they name."""

from pathlib import Path

import pytest

from serving.contract.binding import BindingPolicy
from serving.contract.files import ContractError, FileRef, describe, verify
from serving.contract.manifest import IndexManifest
from tasks.errors import VitrineError
from tasks.registry import ENCODER_MODEL, ENCODER_PATH, INDEX_MODEL, Registry
from tasks.registry.runs import EXPERIMENT_KIND
from tasks.registry.version_page import DESCRIPTION_LENGTH
from tasks.release.bind import bind_version
from tests.registered import Shop
from tests.tiny import tiny_encoder

pytestmark = pytest.mark.slow


@pytest.fixture
def registry(mlflow_uri: str, tmp_path: Path) -> Registry:
    return Registry(mlflow_uri, tmp_path / "cache")


def register_tiny(registry: Registry, folder: Path, key: str, seed: int = 0) -> str:
    """Registers the tiny encoder as a version of product-encoder; gives its number."""
    tiny_encoder(folder, seed=seed)
    with registry.run("test encoders", key, "tiny") as run:
        run.artifacts(folder, ENCODER_PATH)
        return registry.register(ENCODER_MODEL, run.run_id, ENCODER_PATH, {"recipe": key}, "tiny").version


def test_a_run_is_found_again_by_its_key_and_registered_once(registry: Registry, tmp_path: Path) -> None:
    first = register_tiny(registry, tmp_path / "encoder", "one")
    again = register_tiny(registry, tmp_path / "encoder", "one")
    other = register_tiny(registry, tmp_path / "other", "two", seed=1)
    assert first == again != other
    assert registry.versions(ENCODER_MODEL)[0].version == other


def test_a_killed_run_keeps_its_metrics_and_is_marked_failed(registry: Registry) -> None:
    def die() -> None:
        with registry.run("test runs", "dies", "dies") as run:
            run.metric("loss", 1.5, 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die()
    with registry.run("test runs", "dies", "dies") as run:
        run.params({"preset": "demo"})
        found = registry.client.get_run(run.run_id)
    assert found.data.metrics["loss"] == 1.5
    assert registry.client.get_run(run.run_id).info.status == "FINISHED"


def test_experiments_open_as_model_training_also_those_made_before(registry: Registry) -> None:
    tag, kind = EXPERIMENT_KIND
    older = registry.client.create_experiment("older runs")
    for name in ("older runs", "new runs"):
        with registry.run(name, "one", "one"):
            pass
        assert registry.client.get_experiment_by_name(name).tags[tag] == kind
    registry.client.set_experiment_tag(older, tag, "genai_development")
    with registry.run("older runs", "one", "one"):
        pass
    assert registry.client.get_experiment(older).tags[tag] == "genai_development", "a person's choice stays"


def test_a_versions_page_is_replaced_but_for_who_made_it_and_fits_what_mlflow_stores(registry: Registry, tmp_path: Path) -> None:
    made = registry.version(ENCODER_MODEL, register_tiny(registry, tmp_path / "encoder", "described"))
    assert (made.summary, "Made by [MLflow run](" in made.description) == ("tiny", True)
    registry.describe(made, "judged\n\n" + "a line of a table\n" * 500)
    found = registry.version(ENCODER_MODEL, made.version)
    assert found.summary == "judged"
    assert found.description.endswith(made.description.removeprefix("tiny"))
    assert len(found.description) <= DESCRIPTION_LENGTH
    registry.describe(found, "judged again")
    assert registry.version(ENCODER_MODEL, made.version).description == made.description.replace("tiny", "judged again", 1)


def test_an_encoder_of_before_is_refused_only_where_binding_is_asked_for_and_loads_once_it_is_bound(
    registry: Registry, tmp_path: Path
) -> None:
    version = register_tiny(registry, tmp_path / "encoder", "of before")
    folder = registry.encoder_folder(version)
    strict = Registry(registry.uri, registry.cache, "", None, BindingPolicy(require_bound=True))
    why = rf"encoder version {version} is not bound to its manifest .* trust it: vitrine release bind$"
    with pytest.raises(ContractError, match=why):
        strict.encoder_folder(version)
    assert (
        bind_version(registry, registry.version(ENCODER_MODEL, version), None)
        == f"encoder version {version} is bound to its manifest"
    )
    assert strict.encoder_folder(version) == folder
    assert strict.encoder_ref(version) == registry.encoder_ref(version)


def test_an_encoder_is_fetched_once_and_verified_every_time(registry: Registry, tmp_path: Path) -> None:
    version = register_tiny(registry, tmp_path / "encoder", "fetched")
    folder = registry.encoder_folder(version)
    ref = registry.encoder_ref(version)
    assert (ref.version, ref.document, ref.dim) == (version, "student.fp32", 16)
    model = folder / "student.fp32.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + b"?")
    assert (registry.encoder_folder(version) / model.name).read_bytes() == whole, "a kept copy that was damaged is fetched anew"


def stored_file(registry: Registry, folder: Path, content: bytes) -> FileRef:
    """Puts a file with this content into a run of its own."""
    path = folder / "part.bin"
    path.write_bytes(content)
    with registry.run("test files", str(folder), "a file") as run:
        run.artifact(path, "index")
    return describe(path, "index/part.bin", run.run_id)


def store(registry: Registry, ref: FileRef, folder: Path, content: bytes) -> None:
    """Replaces a file in the registry's store by one with this content."""
    path = folder / Path(ref.path).name
    path.write_bytes(content)
    registry.client.log_artifact(ref.run_id, str(path), "index")


def test_a_damaged_download_is_not_kept_and_a_damaged_copy_is_fetched_anew(registry: Registry, tmp_path: Path) -> None:
    content = b"vectors" * 1000
    ref = stored_file(registry, tmp_path, content)
    store(registry, ref, tmp_path, b"V" + content[1:])
    with pytest.raises(ContractError, match=r"index/part\.bin.*corrupt"):
        registry.file(ref)
    store(registry, ref, tmp_path, content)
    kept = registry.file(ref)
    assert kept.read_bytes() == content, "the store is whole again"
    kept.write_bytes(content[:-1])
    assert registry.file(ref).read_bytes() == content
    kept.unlink()
    assert registry.file(ref).read_bytes() == content


def test_a_file_is_read_whole_once_while_nobody_writes_to_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = stored_file(registry, tmp_path, b"vectors")
    kept = registry.file(ref)
    read: list[Path] = []

    def noted(path: Path, ref: FileRef) -> Path:
        read.append(path)
        return verify(path, ref)

    monkeypatch.setattr("tasks.registry.artifacts.verify", noted)
    registry.file(ref)
    assert not read
    kept.write_bytes(b"vectors")
    registry.file(ref)
    assert read == [kept]


def test_a_file_that_the_store_lost_is_named_with_its_version(registry: Registry, tmp_path: Path) -> None:
    ref = stored_file(registry, tmp_path, b"vectors")
    version = registry.register(INDEX_MODEL, ref.run_id, "index", {}, "a version").version
    registry.delete_artifact(ref.run_id, ref.path)
    with pytest.raises(ContractError, match=rf"index/part\.bin of run .* \(product-index version {version}\) is not in MLflow's"):
        registry.file(ref)
    with pytest.raises(ContractError, match=r"index/manifest\.json of run"):
        registry.index_manifest(version)
    gone = ref.model_copy(update={"run_id": "f" * 32})
    with pytest.raises(ContractError, match=f"of run {'f' * 32} is not in"):
        registry.file(gone)
    registry.delete_version(INDEX_MODEL, version)


def test_a_store_that_cannot_be_reached_is_not_a_file_that_is_gone(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    ref = stored_file(registry, tmp_path, b"vectors")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nowhere = Registry("http://127.0.0.1:9", tmp_path / "other")
    with pytest.raises(MlflowException, match="Connection refused"):
        nowhere.file(ref)


def test_a_manifest_whose_kept_copy_was_damaged_is_fetched_anew(registry: Registry, tmp_path: Path) -> None:
    version = Shop(tmp_path, registry).version()
    manifest = registry.index_manifest(version)
    (kept,) = (registry.cache / "manifests").rglob("manifest.json")
    kept.write_text("{}")
    assert registry.index_manifest(version) == manifest
    assert IndexManifest.model_validate_json(kept.read_bytes()) == manifest


def test_aliases(registry: Registry, tmp_path: Path) -> None:
    assert registry.alias(INDEX_MODEL, "never") is None
    with pytest.raises(VitrineError, match="run the DAG rebuild_index first"):
        registry.require_alias(INDEX_MODEL, "never")
    version = register_tiny(registry, tmp_path / "encoder", "aliased")
    registry.set_alias(ENCODER_MODEL, "tested", version)
    assert registry.require_alias(ENCODER_MODEL, "tested").version == version
