"""A version whose encoder has one tower for documents and queries, and none for words: served like any other."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.contract.files import describe
from serving.contract.manifest import EncoderManifest, IndexManifest, read_manifest
from serving.contract.provenance import Origin
from serving.settings import ServingSettings


def with_one_tower(release: Path, version: str) -> None:
    """Makes the only tower of a version's encoder its teacher, of pretrained weights: document and query are the same."""
    path = release / version / "manifest.json"
    manifest = read_manifest(path, IndexManifest)
    folder = release / "encoders" / manifest.encoder.manifest.sha256
    encoder = read_manifest(folder / "encoder.json", EncoderManifest)
    with np.load(folder / "golden.npz") as golden:
        np.savez(folder / "golden.npz", **{"pixels": golden["pixels"], "teacher.fp32": golden["student.fp32"]})
    encoder = EncoderManifest(
        name=encoder.name, dim=encoder.dim, preprocess=encoder.preprocess, towers={"teacher": encoder.towers["student"]},
        document="teacher.fp32", query="teacher.fp32", golden=describe(folder / "golden.npz", "golden.npz"), trained="none",
        origin=Origin(name="a published network", tag="1.0", licence="Apache-2.0"),
    )  # fmt: skip
    (folder / "encoder.json").write_text(encoder.to_json())
    reference = describe(folder / "encoder.json", "encoder/encoder.json")
    shutil.move(folder, folder.with_name(reference.sha256))
    used = manifest.encoder.model_copy(update={"manifest": reference, "document": "teacher.fp32", "query": "teacher.fp32"})
    path.write_text(manifest.model_copy(update={"encoder": used}).to_json())


def test_it_answers_photos_and_says_that_it_takes_no_words(home: Path, made: Path) -> None:
    with_one_tower(home / "release", "1")
    app = create_app(ServingSettings(release=str(home / "release")))
    app.state.replica.slots.refresh()
    photo = (made / "shop" / "photos" / "4-2.jpg").read_bytes()
    with TestClient(app) as client:
        answer = client.post("/v1/search", files={"image": photo}, data={"k": "5"}).json()
        assert answer["results"][0]["product_id"] == "p004"
        assert (answer["version"]["tower"], answer["version"]["variant"]) == ("teacher", "fp32")
        assert client.get("/v1/version").json()["live"]["words"] is False
        for query in ({"text": "a red mug"}, {"text": "a red mug", "product_id": None}):
            refused = client.post("/v1/search", json=query)
            assert refused.status_code == 422
            assert "encoder version 1 has no text tower; search with a photo, a product or a vector" in json.dumps(refused.json())
        mixed = client.post("/v1/search", files={"image": photo}, data={"text": "in blue"})
        assert "has no text tower" in json.dumps(mixed.json())


@pytest.mark.parametrize("kind", [IndexManifest, EncoderManifest])
def test_a_version_in_a_newer_format_fails_by_name_and_the_live_one_goes_on(kind: type, home: Path) -> None:
    release = home / "release"
    app = create_app(ServingSettings(release=str(release)))
    slots = app.state.replica.slots
    slots.refresh()
    path = release / "2" / "manifest.json"
    raw = json.loads(path.read_text())
    if kind is IndexManifest:
        path.write_text(json.dumps(raw | {"format": 3}))
    else:
        folder = release / "encoders" / raw["encoder"]["manifest"]["sha256"]
        encoder = json.loads((folder / "encoder.json").read_text())
        (folder / "encoder.json").write_text(json.dumps(encoder | {"format": 3}))
        reference = describe(folder / "encoder.json", "encoder/encoder.json")
        shutil.move(folder, folder.with_name(reference.sha256))
        path.write_text(json.dumps(raw | {"encoder": raw["encoder"] | {"manifest": reference.model_dump()}}))
    (release / "aliases.json").write_text(json.dumps({"live": "2", "blue": "1", "green": "2"}))
    slots.refresh()
    assert slots.live.version == "1"
    assert "3 is the format of a newer Vitrine; this one reads formats 1 and 2: upgrade it first" in slots.slots["green"].reason
    assert kind.__name__ in slots.slots["green"].reason
