"""Another server of vectors, in an environment of its own: built over FOLDER/xb.npy (n, d), asked by FOLDER/xq.npy.

    <its python> tests/benchmarks/peer_servers.py milvus FOLDER
    <its python> tests/benchmarks/peer_servers.py clip-retrieval FOLDER PORT

`milvus` is milvus-lite: it says READY once it is built, and for each line {"clients", "seconds", "ef"} on stdin it prints what `loop`
measured against FOLDER/gt.npy. `clip-retrieval` serves its back end over an index that autofaiss chose; its image model is not
loaded, since it is asked by vectors only.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

K = 20
Ask = Callable[[int], list[int]]
INSERT = 5000


def loop(client: Callable[[], Ask], truth: np.ndarray, clients: int, seconds: float) -> dict[str, float]:
    """Each client asks its next query when it has the answer to the last: qps, p50 and p99 (ms), and recall@10 against `truth`.

    `client()` makes what a client asks with: the number of a query to the ids that it is answered.
    """
    took: list[float] = []
    found: dict[int, list[int]] = {}
    until = time.perf_counter() + seconds

    def run(start: int) -> None:
        ask, n = client(), start
        while (began := time.perf_counter()) < until:
            found[n % len(truth)] = ask(n % len(truth))
            took.append(time.perf_counter() - began)
            n += 7

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(run, range(clients)))
    ms = 1e3 * np.array(took)
    recall = np.mean([len(set(ids[:10]) & set(truth[n].tolist())) / 10 for n, ids in found.items()])
    figures = {
        "qps": len(took) / (time.perf_counter() - began),
        "p50": np.median(ms),
        "p99": np.percentile(ms, 99),
        "recall_at_10": recall,
    }
    return {name: float(value) for name, value in figures.items()}


def milvus(folder: Path) -> None:
    from pymilvus import DataType, MilvusClient

    xb, xq, gt = (np.load(folder / f"{n}.npy") for n in ("xb", "xq", "gt"))
    client = MilvusClient(str(folder / "milvus.db"))
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("v", DataType.FLOAT_VECTOR, dim=xb.shape[1])
    client.create_collection("products", schema=schema)
    began = time.perf_counter()
    for start in range(0, len(xb), INSERT):
        client.insert("products", [{"id": start + n, "v": v} for n, v in enumerate(xb[start : start + INSERT])])
    client.flush("products")
    index = client.prepare_index_params()
    index.add_index("v", index_type="HNSW", metric_type="IP", params={"M": 32, "efConstruction": 100})
    client.create_index("products", index)
    client.load_collection("products")
    print(json.dumps({"build_s": time.perf_counter() - began}), "READY", flush=True)

    def ask(n: int, ef: int) -> list[int]:
        rows = client.search("products", [xq[n]], limit=K, output_fields=["id"], search_params={"params": {"ef": ef}})[0]
        return [row["id"] for row in rows]

    for line in sys.stdin:
        told: dict[str, Any] = json.loads(line)
        print(json.dumps(loop(lambda ef=told["ef"]: lambda n: ask(n, ef), gt, told["clients"], told["seconds"])), flush=True)


def clip_retrieval(folder: Path, port: int) -> None:
    import all_clip
    import flask
    import pandas as pd
    from autofaiss import build_index
    from clip_retrieval.clip_back import clip_back

    xb = np.load(folder / "xb.npy")
    place = folder / "clip"
    (place / "metadata").mkdir(parents=True)
    began = time.perf_counter()
    build_index(
        xb, index_path=str(place / "image.index"), index_infos_path=str(place / "infos.json"), metric_type="ip", index_key="HNSW32",
        max_index_memory_usage="4GB", current_memory_available="8GB", verbose=40,
    )  # fmt: skip
    print(json.dumps({"build_s": time.perf_counter() - began}), flush=True)
    titles = pd.DataFrame(
        {"image_path": [f"P{n:07d}" for n in range(len(xb))], "caption": [f"Product {n}" for n in range(len(xb))]}
    )
    titles.to_parquet(place / "metadata" / "metadata_0.parquet")
    (folder / "indices.json").write_text(json.dumps({"products": str(place)}))
    all_clip.load_clip = lambda *_, **__: (None, None, None)
    run = flask.Flask.run
    flask.Flask.run = lambda app, **kwargs: run(app, **(kwargs | {"host": "127.0.0.1", "threaded": True}))
    clip_back(
        str(folder / "indices.json"), port, enable_mclip_option=False, use_jit=False, provide_aesthetic_embeddings=False,
        columns_to_return=["image_path", "caption"],
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "milvus":
        milvus(Path(sys.argv[2]))
    else:
        clip_retrieval(Path(sys.argv[2]), int(sys.argv[3]))
