"""The next build takes over the live version's template over a real MLflow, or says why it trains anew."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks import storage
from tasks.errors import StoreAway
from tasks.index.choice import IndexConfig
from tasks.index.template import Template, train_template
from tasks.index.template_store import TEMPLATE_FILE, live_template, store_template, template_json, template_of
from tasks.registry import INDEX_MODEL, INDEX_PATH, Registry
from tests.index.shop import Shop
from tests.registered import Shop as RegisteredShop

pytestmark = pytest.mark.slow


def test_the_live_versions_template_is_taken_over(mlflow_uri: str, wide_shop: Shop, tmp_path: Path) -> None:
    registry = Registry(mlflow_uri, tmp_path / "cache")
    shop = RegisteredShop(tmp_path / "shop", registry)
    version = shop.version()
    shop.point(live=version)
    run_id = registry.version(INDEX_MODEL, version).run_id
    fingerprint = registry.index_manifest(version).encoder.document_fingerprint
    found, why = live_template(registry, fingerprint)
    assert (found, "kept no template" in why) == (None, True)
    config = IndexConfig(shards=wide_shop.shards, family="ivf_flat")
    trained = train_template(wide_shop.vectors_uri, config, tmp_path / "one")
    stored = store_template(trained, str(tmp_path / "kept"))
    assert store_template(trained, str(tmp_path / "kept")) == stored
    (tmp_path / "one" / TEMPLATE_FILE).write_text(template_json(stored, fingerprint))
    assert [p.name for p in (tmp_path / "kept").iterdir()] == [f"{trained.sha256}.faiss"]
    registry.client.log_artifact(run_id, str(tmp_path / "one" / TEMPLATE_FILE), INDEX_PATH)
    found, why = live_template(registry, fingerprint)
    assert found is not None
    again = train_template(wide_shop.vectors_uri, config, tmp_path / "two", found, why)
    assert (again.sha256, again.reason) == (trained.sha256, "taken over: its centroids still fit")
    assert not (tmp_path / "two").exists(), "nothing was trained"
    other, why = live_template(registry, "0" * 64)
    assert (other, why) == (None, f"version {version} is live and has another encoder")
    anew = train_template(wide_shop.vectors_uri, replace(config, sample=12_000), tmp_path / "three", other, why)
    assert anew.reason.endswith(f": {why}")
    kept = tmp_path / "kept" / f"{trained.sha256}.faiss"
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    damaged, why = live_template(registry, fingerprint)
    assert (damaged, "corrupt" in why) == (None, True)
    kept.unlink()
    assert "is gone" in live_template(registry, fingerprint)[1]


def test_a_family_without_training_keeps_a_record_and_no_file(wide_shop: Shop, tmp_path: Path) -> None:
    flat = train_template(wide_shop.vectors_uri, IndexConfig(shards=wide_shop.shards), tmp_path)
    stored = store_template(flat, str(tmp_path / "kept"))
    assert json.loads(template_json(stored, "f" * 64))["kept"] == ""
    assert not (tmp_path / "kept").exists()


def test_a_store_that_is_away_is_no_reason_to_train_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(uri: str, checksum: str) -> None:
        raise StoreAway(f"{uri}: the object store does not answer as it should")

    kept = tmp_path / "kept.faiss"
    kept.write_bytes(b"template")
    record = tmp_path / TEMPLATE_FILE
    record.write_text(template_json(Template("ivf_flat", "IVF4,Flat", 4, 1, 8, str(kept), "0" * 64), "fingerprint"))
    path = f"{INDEX_PATH}/{TEMPLATE_FILE}"
    registry: Any = SimpleNamespace(artifacts=lambda run, folder: [(path, 1)], fetch=lambda run, name, into: record)
    base = SimpleNamespace(kind="base", table=SimpleNamespace(run_id="1"))
    manifest: Any = SimpleNamespace(segments=[base])
    assert "it is corrupt" in template_of(registry, manifest)[1]
    monkeypatch.setattr(storage, "read_verified", away)
    with pytest.raises(StoreAway):
        template_of(registry, manifest)
