"""A product-quantised index over the lists of one that is built already: only the codes are new, no vector is compared with centroids."""

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from serving.contract.files import atomic_write, describe
from serving.contract.segments import write_index
from tasks.index.build import BuiltShard
from tasks.index.coarse import ivf_view
from tasks.index.families import code_count
from tasks.index.template import empty_index
from tasks.index.vectors import sample_vectors, shard_batches
from tests.benchmarks.made_shop import MadeShop

SAMPLE = 65_536


def train_codes(shop: MadeShop, template: Any, folder: Path) -> dict[str, Any]:
    """Trains 8-bit codes of a byte for 8 dimensions on the residuals to a template's centroids; gives the factory and the file."""
    lists = ivf_view(template_index := empty_index(template))
    assert template_index.d == shop.dim
    quantizer = faiss.IndexFlat(shop.dim, faiss.METRIC_INNER_PRODUCT)
    quantizer.add(lists.quantizer.reconstruct_n(0, lists.nlist))
    m = code_count(shop.dim, 8)
    index = faiss.IndexIVFPQ(quantizer, shop.dim, lists.nlist, m, 8, faiss.METRIC_INNER_PRODUCT)
    index.train(sample_vectors(shop.vectors_uri, shop.shards, SAMPLE, 7))
    write_index(folder / "template.faiss", index)
    return {"factory": f"IVF{lists.nlist},PQ{m}", "file": str(folder / "template.faiss")}


def add_codes(shop: MadeShop, template_file: str, beside: BuiltShard, folder: Path) -> dict[str, Any]:
    """A shard's codes, every vector in the list that `beside` has it in; the row table is that one's."""
    folder.mkdir(parents=True, exist_ok=True)
    index = faiss.read_index(template_file)
    held = _lists(Path(beside.uri) / beside.index.path, beside.rows)
    start = 0
    for keys, vectors in shard_batches(shop.vectors_uri, beside.shard):
        mine = np.ascontiguousarray(held[start : start + len(keys)])
        index.add_core(len(keys), faiss.swig_ptr(vectors), None, faiss.swig_ptr(mine))
        start += len(keys)
    path = folder / beside.index.path
    write_index(path, index)
    table = folder / beside.table.path
    table.unlink(missing_ok=True)
    table.hardlink_to(Path(beside.uri) / beside.table.path)
    built = BuiltShard(beside.shard, beside.rows, "ivf_pq", str(folder), describe(path, path.name), beside.table)
    with atomic_write(folder / "built.json") as whole:
        whole.write_text(json.dumps(built.to_json()))
    return built.to_json()


def _lists(path: Path, rows: int) -> np.ndarray:
    """The list (rows,) int64 that each position of an index is in."""
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    lists = ivf_view(index)
    held = np.full(rows, -1, np.int64)
    for number in range(lists.nlist):
        size = lists.invlists.list_size(number)
        if size:
            held[faiss.rev_swig_ptr(lists.invlists.get_ids(number), size)] = number
    assert (held >= 0).all()
    return held
