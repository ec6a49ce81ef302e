"""The calls of Weaviate that we make, by its published API: REST, and gRPC by the definitions in its client. This is not a Weaviate.

Distances are exact; there is no index, nothing is queued, and `ef` means nothing. Its limits of a request are kept.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import grpc
import numpy as np
from weaviate.proto.v1 import aggregate_pb2, base_pb2, batch_pb2, search_get_pb2, weaviate_pb2_grpc

from serving.index.collection import Endpoint
from serving.index.weaviate_engine import VECTOR
from tests.engines.stand_in import JsonServer
from tests.servers import free_port

MOST = 10_000
VERSION = "1.34.0"
Held = dict[str, np.ndarray]


class WeaviateStandIn(weaviate_pb2_grpc.WeaviateServicer):
    """Killed and started again it still has what it was given, as a Weaviate over its disk would."""

    def __init__(self) -> None:
        self.classes: dict[str, Held] = {}
        self.aliases: dict[str, str] = {}
        self.rest, self.port = free_port(), free_port()
        self.endpoint = Endpoint(f"http://127.0.0.1:{self.rest}?grpc=127.0.0.1:{self.port}", timeout_s=20)
        self.server = JsonServer(self.rest, self.answer)
        self.rpc = self.listening()

    def listening(self) -> grpc.Server:
        server = grpc.server(ThreadPoolExecutor(4))
        weaviate_pb2_grpc.add_WeaviateServicer_to_server(self, server)
        server.add_insecure_port(f"127.0.0.1:{self.port}")
        server.start()
        return server

    def start(self) -> None:
        self.server.start()
        self.rpc = self.listening()

    def kill(self) -> None:
        self.server.kill()
        self.rpc.stop(None).wait()

    def answer(self, method: str, address: str, asked: Any) -> tuple[int, Any]:
        path = address.partition("?")[0].removeprefix("/v1")
        if path == "/meta":
            return 200, {"version": VERSION}
        if path == "/schema":
            self.classes[asked["class"]] = {}
            return 200, asked
        if path.startswith("/nodes/"):
            shard = {"class": path[7:], "name": "a", "objectCount": 0, "vectorIndexingStatus": "READY", "vectorQueueLength": 0}
            return 200, {"nodes": [{"name": "node", "status": "HEALTHY", "shards": [shard | {"compressed": False}]}]}
        if found := re.fullmatch("/schema/(.+)", path):
            there = found[1] in self.classes
            if method == "DELETE":
                self.classes.pop(found[1], None)
                return 200, None
            return (200, {"class": found[1]}) if there else (404, None)
        return self.alias(method, path, asked)

    def alias(self, method: str, path: str, asked: Any) -> tuple[int, Any]:
        if path == "/aliases":
            if method == "POST":
                self.aliases[asked["alias"]] = asked["class"]
            return 200, {"aliases": [{"alias": alias, "class": name} for alias, name in self.aliases.items()]}
        alias = path.removeprefix("/aliases/")
        if alias not in self.aliases:
            return 404, None
        if method == "DELETE":
            del self.aliases[alias]
            return 204, None
        if method == "PUT":
            self.aliases[alias] = asked["class"]
        return 200, {"alias": alias, "class": self.aliases[alias]}

    def BatchObjects(self, request: Any, context: Any) -> Any:  # noqa: N802
        for one in request.objects:
            assert [v.name for v in one.vectors] == [VECTOR]
            self.classes[one.collection][one.uuid] = np.frombuffer(one.vectors[0].vector_bytes, "<f4")
        return batch_pb2.BatchObjectsReply()

    def Aggregate(self, request: Any, context: Any) -> Any:  # noqa: N802
        count = len(self.chosen(request))
        return aggregate_pb2.AggregateReply(single_result=aggregate_pb2.AggregateReply.Single(objects_count=count))

    def Search(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.collection not in self.classes:
            context.abort(grpc.StatusCode.UNKNOWN, f"could not find class {request.collection} in schema")
        assert request.limit <= MOST
        held, ids = self.classes[request.collection], self.chosen(request)
        distances = np.zeros(len(ids), np.float32)
        if request.HasField("near_vector"):
            x = np.frombuffer(request.near_vector.vectors[0].vector_bytes, "<f4")
            distances = -(np.array([held[n] for n in ids]) @ x) if ids else distances
        order = np.argsort(distances, kind="stable")[: request.limit]
        return search_get_pb2.SearchReply(results=[self.result(ids[n], float(distances[n]), held, request) for n in order])

    @staticmethod
    def result(uuid: str, distance: float, held: Held, request: Any) -> Any:
        vectors = [base_pb2.Vectors(name=VECTOR, vector_bytes=held[uuid].tobytes())]
        wanted = request.metadata.vector or request.metadata.vectors
        shown = search_get_pb2.MetadataResult(
            id=uuid, id_as_bytes=UUID(uuid).bytes, distance=distance, distance_present=True, vectors=vectors if wanted else []
        )
        return search_get_pb2.SearchResult(metadata=shown, properties=search_get_pb2.PropertiesResult())

    def chosen(self, request: Any) -> list[str]:
        """The ids that a filter by id allows."""
        held = self.classes[request.collection]
        if not request.HasField("filters"):
            return list(held)
        return [n for n in self.named(request.filters) if n in held]

    def named(self, condition: Any) -> list[str]:
        """The ids that a condition names: one, any of several, or either of two conditions."""
        if condition.filters:
            return [n for part in condition.filters for n in self.named(part)]
        assert condition.target.property == "_id"
        return list(condition.value_text_array.values) or [condition.value_text]
