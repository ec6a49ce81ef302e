"""What shard processes tell of the requests they are asked for: spans below the gateway's, and the gateway's request ids."""

from contextlib import ExitStack

import pytest
from fastapi.testclient import TestClient

from serving.app import create_app
from serving.cluster.shard_server import ShardError
from serving.settings import ServingSettings
from tests.collector import collecting
from tests.running import Served, until
from tests.serving.cluster.conftest import gateway_app, running
from tests.serving.replica.storefront import Storefront

pytestmark = pytest.mark.slow


def test_a_shards_spans_lie_below_the_gateways(front: Storefront) -> None:
    shown = {"release": str(front.release), "poll_s": 0.05}
    with collecting() as collector:
        with ExitStack() as stack:
            shards = [
                create_app(ServingSettings(role="shard", shards=(n,), otel_endpoint=collector.url, **shown))  # type: ignore[arg-type]
                for n in ("0", "1")
            ]
            urls = [stack.enter_context(Served(app)).url for app in shards]
            client = stack.enter_context(TestClient(gateway_app(front, urls, otel_endpoint=collector.url)))
            until(lambda: client.get("/readyz").status_code == 200)
            vector = front.vectors["1"][3].tolist()
            assert client.post("/v1/search", json={"vector": vector}, headers={"x-request-id": "mine-1"}).status_code == 200
        ids = {s.span_id: {a.key: a.value.string_value for a in s.attributes}.get("vitrine.request_id") for s in collector.spans}
        request = next(s for s in collector.spans if s.name == "POST /v1/search")
        below = [s for s in collector.spans if s.parent_span_id == request.span_id and s.name == "POST /shard/search"]
        assert [s.trace_id for s in below] == [request.trace_id] * 2
        assert [ids[s.span_id] for s in (request, *below)] == ["mine-1"] * 3
        assert "request" not in {s.name for s in collector.spans}


def test_what_a_shard_refuses_is_logged_with_the_gateways_request_id(
    store: Storefront, lines: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(store, (0,), (1,)) as (client, served):
        holder = served[1].server.config.app.state.server  # type: ignore[union-attr]

        async def busy(body: bytes) -> bytes:
            raise ShardError(503, "too many questions")

        monkeypatch.setattr(holder, "search", busy)
        body = {"vector": store.vectors["1"][3].tolist()}
        answer = client.post("/v1/search", json=body, headers={"x-request-id": "mine-2"}).json()
        assert answer["coverage"] == {"shards_ok": 1, "shards_total": 2}
    refused = next(line for line in lines if line.get("route") == "/shard/search")
    assert (refused["request_id"], refused["status"]) == ("mine-2", 503)
