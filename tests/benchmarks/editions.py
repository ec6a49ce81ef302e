"""Versions of one shop, each in an embedding space of its own: what flips under load are proved with.

Every edition's index holds the same products with all vectors turned (dimensions permuted, signs flipped), and its encoder is the
same network turned alike. So each edition alone answers rightly, and an answer that joins the encoder of one with the index of
another is nonsense that its digest gives away.
"""

import json
import os
import shutil
from pathlib import Path

import faiss
import numpy as np
import onnx
from onnx import numpy_helper

from serving.contract.encoder import EncoderFolder
from serving.contract.files import FileRef, atomic_write, describe
from serving.contract.manifest import EncoderManifest, IndexManifest, Variant, fingerprint
from serving.contract.provenance import EngineRef
from serving.contract.runtimes import ONNXRUNTIME
from serving.contract.segments import read_index, write_index
from serving.index.collection import Endpoint
from serving.index.searcher import Searcher
from serving.versions.golden_answers import write_golden
from tasks.index.engine_collections import open_collections
from tasks.index.engine_families import engine_family
from tasks.index.families import list_count
from tasks.index.upload import BLOCK_ROWS
from tests.benchmarks.market import DIM, Market, market

CORRUPT = "corrupt"


def editions(out: Path, count: int, rows: int = 20_000) -> Market:
    """A release with versions "1" to "count" and "corrupt" (one bit of a file is another); "1" is live in blue."""
    made = market(out, rows, "flat")
    home = out / f"editions-{rows}-{count}"
    release = home / "release"
    if not (release / CORRUPT).is_dir():
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(made.release, release)
        for number in range(2, count + 1):
            _turned(release, made.manifest(), str(number), number)
        _corrupt(release, str(count))
    point(release, blue="1", green="", live="1")
    return Market(release, made.queries, made.photos[:200])


def in_engine(made: Market, name: str, endpoint: Endpoint, home: Path) -> Market:
    """The same editions in a release below `home`, with the base vectors of each in a collection of another engine."""
    release = home / "release"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(made.release, release, copy_function=os.link)
    for path in sorted(release.glob("*/manifest.json")):
        manifest = IndexManifest.model_validate_json(path.read_bytes())
        if manifest.id != CORRUPT:
            _write(release, path.parent.name, _uploaded(release, manifest, name, endpoint))
    _corrupt(release, "1")
    return Market(release, made.queries, made.photos)


def _uploaded(release: Path, manifest: IndexManifest, name: str, endpoint: Endpoint) -> IndexManifest:
    """The manifest over a collection of its vectors, with golden answers of its own."""
    collections, family = open_collections(name, endpoint), engine_family(name)
    collection = f"vitrine_{manifest.id.replace(' ', '_')}"
    (segment,) = manifest.segments
    assert segment.index is not None
    x = read_index(release / "files" / segment.index.sha256, DIM, segment.rows).reconstruct_n(0, segment.rows)
    factory = family.factory(DIM, list_count(len(x)))
    collections.create(collection, DIM, factory)
    for first in range(0, len(x), BLOCK_ROWS):
        collections.put(collection, first, x[first : first + BLOCK_ROWS])
    collections.complete(collection, factory, len(x))
    manifest = manifest.model_copy(
        update={
            "engine": EngineRef(name=name, collection=collection, rows=len(x), digest="0" * 64),
            "segments": (segment.model_copy(update={"index": None, "family": family.name}),),
            "search": {"family": family.name, "candidates": 500} | family.grid[-1],
        }
    )
    searcher = Searcher.open(manifest, lambda ref: release / "files" / ref.sha256, endpoint=endpoint)
    path = release / "golden.npz"
    write_golden(path, searcher, np.ascontiguousarray(x[:: len(x) // 8]))
    return manifest.model_copy(update={"golden": _keep(release, path)})


def point(release: Path, **aliases: str) -> None:
    """Moves aliases, as a promotion does."""
    path = release / "aliases.json"
    now = json.loads(path.read_text())
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(now | aliases))


def _turned(release: Path, first: IndexManifest, version: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    places, signs = rng.permutation(DIM), rng.choice([-1.0, 1.0], DIM).astype(np.float32)
    work = release.parent / f"work-{version}"
    encoder, reference = _turned_encoder(release / "encoders" / first.encoder.manifest.sha256, work / "encoder", places, signs)
    shutil.copytree(work / "encoder", release / "encoders" / reference.sha256)
    segments = []
    for segment in first.segments:
        assert segment.index is not None
        index = read_index(release / "files" / segment.index.sha256, DIM, segment.rows)
        turned = faiss.IndexFlatIP(DIM)
        turned.add(np.ascontiguousarray((index.reconstruct_n(0, index.ntotal) * signs)[:, places]))
        write_index(work / "index.faiss", turned)
        segments.append(segment.model_copy(update={"index": _keep(release, work / "index.faiss")}))
    print_ = encoder.variant(encoder.query).fingerprint
    prints = {"manifest": reference, "document_fingerprint": print_, "query_fingerprint": print_, "version": version}
    manifest = first.model_copy(
        update={
            "id": f"edition {version}",
            "segments": tuple(segments),
            "encoder": first.encoder.model_copy(update=prints),
        }
    )
    searcher = Searcher.open(manifest, lambda ref: release / "files" / ref.sha256)
    xq = np.stack([searcher.vector(n) for n in range(0, searcher.rows, searcher.rows // 8)])
    write_golden(work / "golden.npz", searcher, xq)
    _write(release, version, manifest.model_copy(update={"golden": _keep(release, work / "golden.npz")}))
    shutil.rmtree(work)


def _turned_encoder(source: Path, folder: Path, places: np.ndarray, signs: np.ndarray) -> tuple[EncoderManifest, FileRef]:
    """The same network whose last layer gives its outputs turned."""
    shutil.copytree(source, folder)
    before = EncoderFolder(source).manifest
    path = folder / before.variant(before.query).file.path
    model = onnx.load(path)
    last = next(n for n in reversed(model.graph.node) if n.op_type == "Gemm")
    for tensor in model.graph.initializer:
        if tensor.name in last.input[1:]:
            values = numpy_helper.to_array(tensor)  # the weight (512, n), the bias (512,)
            turned = (values * (signs[:, None] if values.ndim == 2 else signs))[places]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(turned.astype(np.float32)), tensor.name))
    onnx.save(model, path)
    file = describe(path, path.name)
    print_ = fingerprint(file.sha256, before.preprocess)
    with np.load(folder / "golden.npz") as kept:
        pixels = kept["pixels"]
    np.savez(folder / "golden.npz", **{"pixels": pixels, before.query: ONNXRUNTIME.open(path, "fp32", 1)(pixels)})
    tower, _, variant = before.query.partition(".")
    towers = {tower: {variant: Variant(file=file, fingerprint=print_)}}
    manifest = before.model_copy(update={"towers": towers, "golden": describe(folder / "golden.npz", "golden.npz")})
    (folder / "encoder.json").write_text(manifest.model_dump_json())
    return manifest, describe(folder / "encoder.json", "encoder/encoder.json")


def _corrupt(release: Path, version: str) -> None:
    """A version of whose index, or rows where an engine has the index, one bit was lost on the way: everything else is right."""
    manifest = IndexManifest.model_validate_json((release / version / "manifest.json").read_bytes())
    segment = manifest.segments[0]
    field, ref = ("table", segment.table) if segment.index is None else ("index", segment.index)
    data = bytearray((release / "files" / ref.sha256).read_bytes())
    data[len(data) // 2] ^= 1
    name = ("e" if segment.index is None else "f") * 64
    (release / "files" / name).write_bytes(data)
    damaged = segment.model_copy(update={field: ref.model_copy(update={"sha256": name})})
    _write(release, CORRUPT, manifest.model_copy(update={"id": CORRUPT, "segments": (damaged, *manifest.segments[1:])}))


def _keep(release: Path, path: Path) -> FileRef:
    ref = describe(path, f"files/{path.name}")
    shutil.move(path, release / "files" / ref.sha256)
    return ref


def _write(release: Path, version: str, manifest: IndexManifest) -> None:
    path = release / version / "manifest.json"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)  # it may be linked from another release
    path.write_text(manifest.model_dump_json())
