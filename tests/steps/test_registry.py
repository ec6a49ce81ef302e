"""The registry against a real MLflow server: what is made twice is made once, and aliases say what they name."""

from pathlib import Path

import pytest

from serving.contract.files import ContractError
from tasks.errors import VitrineError
from tasks.registry import ENCODER_MODEL, ENCODER_PATH, INDEX_MODEL, Registry
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


def test_an_encoder_is_fetched_once_and_verified_every_time(registry: Registry, tmp_path: Path) -> None:
    version = register_tiny(registry, tmp_path / "encoder", "fetched")
    folder = registry.encoder_folder(version)
    ref = registry.encoder_ref(version)
    assert (ref.version, ref.document, ref.dim) == (version, "student.fp32", 16)
    model = folder / "student.fp32.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(ContractError, match="corrupt"):
        registry.encoder_folder(version)


def test_aliases(registry: Registry, tmp_path: Path) -> None:
    assert registry.alias(INDEX_MODEL, "never") is None
    with pytest.raises(VitrineError, match="run the DAG rebuild_index first"):
        registry.require_alias(INDEX_MODEL, "never")
    version = register_tiny(registry, tmp_path / "encoder", "aliased")
    registry.set_alias(ENCODER_MODEL, "tested", version)
    assert registry.require_alias(ENCODER_MODEL, "tested").version == version
