"""The OpenAPI document says what is asked and answered: every reference resolves, every operation has an example, nothing is left out."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.settings import ServingSettings
from serving.versions.version_source import FolderSource
from tests.serving.replica.storefront import Storefront


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = create_app(ServingSettings(), FolderSource(tmp_path_factory.mktemp("nothing"))).openapi()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{method.upper()} {path}": o for path, methods in document["paths"].items() for method, o in methods.items()}


def looked_up(document: dict[str, Any], ref: str) -> dict[str, Any]:
    found = document
    for name in ref.removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_every_reference_resolves_and_every_search_is_described(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    assert "#/$defs/" not in text
    for part in text.split('"$ref": "')[1:]:
        assert looked_up(document, part.partition('"')[0])
    content = operations(document)["POST /v1/search"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}


def test_every_operation_has_an_example(document: dict[str, Any]) -> None:
    for label, operation in operations(document).items():
        text = json.dumps(operation)
        models = [
            json.dumps(looked_up(document, part.partition('"')[0]))
            for part in text.split('"$ref": "')[1:]
            if "Problem" not in part
        ]
        assert any('"example' in t for t in [text, *models]), label


def test_every_answer_has_a_form_and_its_headers(document: dict[str, Any]) -> None:
    for label, operation in operations(document).items():
        for status, answer in operation["responses"].items():
            assert "X-Request-Id" in answer["headers"], (label, status)
            assert ("Retry-After" in answer["headers"]) == (status in ("429", "503"))
            assert status == "304" or all(c.get("schema") for c in answer["content"].values())
    for label in ("GET /v1/search", "GET /v1/products/{product_id}/similar"):
        told = operations(document)[label]
        assert {"ETag", "Server-Timing"} < set(told["responses"]["200"]["headers"])
        assert "ETag" in told["responses"]["304"]["headers"]
        names = {p["name"] for p in told["parameters"] if p["in"] == "header"}
        assert names == {"X-Timeout-Ms", "X-Request-Id", "If-None-Match"}


def test_what_a_replica_says_of_itself_is_described_whole(
    document: dict[str, Any], asked: TestClient, front: Storefront, admin: dict[str, str]
) -> None:
    schemas = document["components"]["schemas"]
    state = asked.get("/v1/version").json()
    assert set(state) <= set(schemas["ReplicaState"]["properties"])
    assert set(state["live"]) == set(schemas["LiveVersion"]["properties"])
    assert set(state["slots"]["blue"]) == set(schemas["SlotState"]["properties"])
    assert set(asked.post("/v1/follow", headers=admin).json()) == set(schemas["SlotsState"]["properties"])


def test_no_page_loads_its_scripts_from_elsewhere(asked: TestClient) -> None:
    for path in ("/docs", "/redoc"):
        answer = asked.get(path)
        assert (answer.status_code, "/openapi.json" in answer.json()["detail"]) == (404, True)
