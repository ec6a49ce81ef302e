"""The calls of Pinecone's data plane that we make, by its published API, in this process's memory. This is not the real service.

Scores are exact dot products, and counts are never late; limits of a request (top_k, ids, pages) are kept.
"""

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from serving.index.collection import Endpoint
from tests.engines.stand_in import JsonServer
from tests.servers import free_port

PAGE, TOP_K, UPSERTS = 100, 10_000, 1000


class PineconeStandIn:
    """One index; killed and started again it still has what it was given, as the service would."""

    def __init__(self, dim: int) -> None:
        self.dim, self.metric, port = dim, "dotproduct", free_port()
        self.spaces: dict[str, dict[str, list[float]]] = {}
        self.endpoint = Endpoint(f"http://127.0.0.1:{port}", "key", timeout_s=20)
        self.server = JsonServer(port, self.answer)
        self.start, self.kill = self.server.start, self.server.kill

    def answer(self, method: str, address: str, asked: Any) -> tuple[int, Any]:
        url = urlsplit(address)
        query = parse_qs(url.query)
        if found := re.fullmatch("/namespaces/(.+)", url.path):
            return self.namespace(method, found[1])
        if url.path == "/describe_index_stats":
            counts = {n: {"vectorCount": len(held)} for n, held in self.spaces.items()}
            return 200, {"dimension": self.dim, "namespaces": counts, "totalVectorCount": sum(map(len, self.spaces.values()))}
        name = asked.get("namespace") or asked.get("name") if asked else query["namespace"][0]
        if url.path == "/namespaces":
            self.spaces[name] = {}
            return 200, {"name": name, "record_count": "0"}
        held = self.spaces.get(name, {})  # what is not there is asked as if it were empty
        if url.path == "/vectors/upsert":
            assert len(asked["vectors"]) <= UPSERTS
            self.spaces[name] = held | {v["id"]: v["values"] for v in asked["vectors"]}
            return 200, {"upsertedCount": len(asked["vectors"])}
        if url.path == "/vectors/fetch":
            return 200, {"vectors": {n: {"id": n, "values": held[n]} for n in query["ids"] if n in held}, "namespace": name}
        if url.path == "/vectors/list":
            return 200, self.page(held, query["prefix"][0], int(query.get("paginationToken", ["0"])[0]))
        assert url.path == "/query"
        return 200, {"matches": self.nearest(held, asked), "namespace": name}

    def namespace(self, method: str, name: str) -> tuple[int, Any]:
        if name not in self.spaces:
            return 404, {"code": 5, "message": "Namespace not found", "details": []}
        if method == "DELETE":
            del self.spaces[name]
            return 200, {}
        return 200, {"name": name, "record_count": str(len(self.spaces[name]))}

    @staticmethod
    def page(held: dict[str, list[float]], prefix: str, start: int) -> dict[str, Any]:
        ids = sorted(n for n in held if n.startswith(prefix))
        more = {"pagination": {"next": str(start + PAGE)}} if len(ids) > start + PAGE else {}
        return {"vectors": [{"id": n} for n in ids[start : start + PAGE]]} | more

    def nearest(self, held: dict[str, list[float]], asked: Any) -> list[dict[str, Any]]:
        assert asked["topK"] <= TOP_K
        ids = list(held)
        scores = np.array([held[n] for n in ids], np.float32).reshape(-1, self.dim) @ np.array(asked["vector"], np.float32)
        best = np.argsort(-scores)[: asked["topK"]]
        scores = 2 - 2 * scores if self.metric == "euclidean" else scores
        shown = [{"id": ids[n], "score": float(scores[n])} for n in best]
        return [s | {"values": held[s["id"]]} for s in shown] if asked["includeValues"] else shown
