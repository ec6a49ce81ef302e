"""The REST calls of Qdrant that we make, answered out of the local mode of Qdrant's own client. This is not a Qdrant server.

It knows names, ids, filters by id and exact similarities. It has no index and no disk: `hnsw_ef`, what Qdrant's optimiser does while
it builds, and what is left after a crash are not shown here.
"""

import re
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python
from qdrant_client import QdrantClient, models

from serving.index.collection import Endpoint
from tests.engines.stand_in import JsonServer
from tests.servers import free_port

Call = Callable[[QdrantClient, str, Any], Any]


def _create(held: QdrantClient, name: str, asked: Any) -> bool:
    return held.create_collection(name, vectors_config=TypeAdapter(models.VectorParams).validate_python(asked["vectors"]))


def _scroll(held: QdrantClient, name: str, asked: Any) -> Any:
    points, after = held.scroll(name, offset=asked.get("offset"), limit=asked["limit"], with_payload=False)
    return {"points": points, "next_page_offset": after}


def _count(held: QdrantClient, name: str, asked: Any) -> Any:
    return held.count(name, models.CountRequest.model_validate(asked).filter, exact=True)


def _query(held: QdrantClient, name: str, asked: Any) -> Any:
    return held.query_batch_points(name, models.QueryRequestBatch.model_validate(asked).searches)


CALLS: dict[tuple[str, str], Call] = {
    ("GET", "/collections/NAME/exists"): lambda held, name, asked: {"exists": held.collection_exists(name)},
    ("GET", "/collections/NAME"): lambda held, name, asked: held.get_collection(name),
    ("PUT", "/collections/NAME"): _create,
    ("PATCH", "/collections/NAME"): lambda held, name, asked: True,
    ("DELETE", "/collections/NAME"): lambda held, name, asked: held.delete_collection(name),
    ("PUT", "/collections/NAME/points"): lambda held, name, asked: held.upsert(name, models.Batch.model_validate(asked["batch"])),
    ("POST", "/collections/NAME/points"): lambda held, name, asked: held.retrieve(name, asked["ids"], False, True),
    ("POST", "/collections/NAME/points/scroll"): _scroll,
    ("POST", "/collections/NAME/points/count"): _count,
    ("POST", "/collections/NAME/points/query/batch"): _query,
    ("GET", "/aliases"): lambda held, name, asked: held.get_aliases(),
    ("POST", "/collections/aliases"): lambda held, name, asked: held.update_collection_aliases(
        models.ChangeAliasesOperation.model_validate(asked).actions
    ),
}


class QdrantStandIn:
    """Killed and started again it still has what it was given, as a Qdrant over its disk would."""

    def __init__(self) -> None:
        port = free_port()
        self.endpoint = Endpoint(f"http://127.0.0.1:{port}", timeout_s=10)
        self.held = QdrantClient(":memory:")
        self.server = JsonServer(port, self.answer)
        self.start, self.kill = self.server.start, self.server.kill

    def answer(self, method: str, address: str, asked: Any) -> tuple[int, Any]:
        path = address.partition("?")[0]
        found = re.fullmatch(r"/collections/(?!aliases$)([^/]+)(/.*)?", path)
        name, pattern = (found[1], f"/collections/NAME{found[2] or ''}") if found else ("", path)
        try:
            result = CALLS[method, pattern](self.held, name, asked)
        except ValueError as error:  # what local mode raises for a collection that is not there
            return 404, {"status": {"error": str(error)}, "time": 0}
        return 200, {"result": to_jsonable_python(result), "status": "ok", "time": 0}
