"""`vitrine encoder`: what is listed, that what is shown is a recipe, and that adopting registers a version without training."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving.contract.encoder import EncoderFolder
from tasks.cli import app
from tasks.encoder.lookup import find_encoder
from tasks.encoder.presets import PRETRAINED
from tasks.encoder.recipe_file import read_recipe
from tasks.errors import TrainingError, VitrineError
from tasks.registry import ENCODER_MODEL, Registry
from tests.encoder.conftest import draw_catalogue
from tests.encoder.train.test_open_clip_models import repository
from tests.graphs import open_all_here, write_once


def run(*arguments: str) -> str:
    """The output of a command; what it raises is raised here."""
    done = CliRunner().invoke(app, [*arguments])
    if done.exception is not None:
        raise done.exception
    return done.output


def test_every_preset_is_listed_with_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    told = run("encoder", "list")
    for published in PRETRAINED:
        line = next(line for line in told.splitlines() if line.strip().startswith(f"{published.name} "))
        assert published.licence in line
        assert published.source in line


@pytest.mark.parametrize("name", ["demo", "vit_b32", "ViT-B-32:openai", "timm:resnet10t:random"])
def test_what_is_shown_is_a_recipe_of_the_same_encoder(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.toml").write_text(run("encoder", "show", name))
    assert read_recipe(tmp_path / "mine.toml") == find_encoder(name)


def test_a_name_of_nothing_is_one_sentence() -> None:
    with pytest.raises(TrainingError, match="there is no encoder preset 'huge'"):
        run("encoder", "show", "huge")


@pytest.mark.slow
def test_an_encoder_is_adopted_once_with_and_without_a_student(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_all_here(monkeypatch)
    write_once(monkeypatch, tmp_path / "graphs")
    shop = draw_catalogue(tmp_path / "shop", products=24)
    rows = (shop / "photos.csv").read_text().splitlines()
    (shop / "photos.csv").write_text("\n".join(r for r in rows if not r.endswith(",train")) + "\n")
    for key, value in {"HOME": str(tmp_path / "home"), "MLFLOW_URI": mlflow_uri, "CATALOG": str(shop)}.items():
        monkeypatch.setenv(f"VITRINE_{key}", value)
    name = f"local-dir:{repository(tmp_path / 'model', weights='open_clip_model.safetensors')}"
    registry = Registry(mlflow_uri, tmp_path / "cache")

    def adopted(*options: str) -> str:
        """The version that is challenger afterwards; random weights pass no gate against a colour histogram."""
        with pytest.raises(VitrineError, match="is registered as challenger; it does not become champion"):
            run("encoder", "adopt", name, *options)
        return registry.require_alias(ENCODER_MODEL, "challenger").version

    version = adopted()
    manifest = EncoderFolder(registry.encoder_folder(version)).manifest
    assert (manifest.trained, set(manifest.towers)) == ("none", {"teacher", "text"})
    tags = registry.version(ENCODER_MODEL, version).tags
    assert tags["verdict"].startswith("failed: beats_colour_histogram")
    assert not [gate for gate in tags["verdict"].split("; ") if gate.startswith("student")]
    assert adopted() == version
    written = json.loads(run("encoder", "repository", "challenger", str(tmp_path / "models"), "--json"))
    config = (tmp_path / "models" / "onnxruntime" / written["model"] / "config.pbtxt").read_text()
    assert manifest.variant(manifest.query).fingerprint in config
    paired = adopted("--student", "vitrine_residual_w8", "--epochs", "1")
    assert paired != version
    assert set(EncoderFolder(registry.encoder_folder(paired)).manifest.towers) == {"teacher", "student", "text"}
