"""A small open_clip ViT all the way, trained with a student and as it is: exported in every variant, embedding a catalogue, and
answering shoppers over HTTP."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch

from serving.contract.encoder import EncoderFolder
from serving.contract.files import describe
from serving.contract.golden_outputs import TOLERANCES
from serving.contract.manifest import EncoderManifest, EncoderRef
from serving.contract.preprocess import PreprocessSpec, decode
from serving.index.searcher import Searcher
from serving.versions.text_encoder import TextEncoder
from tasks import storage
from tasks.catalog.snapshot import Snapshot, product_table
from tasks.embed.job import EmbedConfig, EmbedResult, embed_snapshot
from tasks.encoder.config import EncoderConfig, Recipe, TowerConfig
from tasks.encoder.export.export import export_encoder
from tasks.encoder.export.onnx_graph import ImageGraph
from tasks.encoder.lookup import choose_training
from tasks.encoder.presets import preset
from tasks.encoder.train.loop import no_log
from tasks.encoder.train.student import distil_student
from tasks.encoder.train.teacher import train_teacher
from tasks.encoder.train.tower_store import restore_teacher
from tasks.index.build import build_shard
from tasks.index.choice import IndexConfig
from tasks.index.template import train_template
from tasks.index.version_manifest import base_segment, draft_manifest, local_files, with_golden
from tests.cluster import Serving
from tests.graphs import open_here

pytestmark = pytest.mark.slow

VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
SHARDS = 2


@dataclass(frozen=True)
class Made:
    """The encoder version, the embedded catalogue, and the release folder that serves it as version 1."""

    folder: Path
    manifest: EncoderManifest
    embedded: EmbedResult
    release: Path
    expected: dict[str, np.ndarray]


def small_vit(place: Path) -> EncoderConfig:
    """An open_clip model of one's own with attention in both towers, and a student of timm's that has it too."""
    (place / "small_vit.json").write_text(json.dumps(VIT))
    few = Recipe(steps=3, products=4, pictures=3, checkpoint_every=3)
    return replace(
        preset("tiny"),
        name="small_vit",
        dim=VIT["embed_dim"],
        preprocess=PreprocessSpec(size=64),
        cache_size=72,
        teacher=TowerConfig(open_clip=str(place / "small_vit.json")),
        student=TowerConfig(timm="test_vit"),
        teacher_recipe=few,
        student_recipe=few,
    )


@pytest.fixture(scope="module", params=["with a student", "as it is"])
def made(request: pytest.FixtureRequest, snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("vit")
    config, work, folder = small_vit(place), place / "work", place / "encoder"
    if request.param == "as it is":
        config = choose_training(config, "none", "none")
    teacher = train_teacher(snapshot.uri, config, work, no_log)
    student = distil_student(snapshot.uri, teacher, config, work, no_log) if config.student else None
    manifest = export_encoder(snapshot.uri, teacher, student, config, work, folder, check=open_here)
    with np.load(folder / "golden.npz") as golden, torch.no_grad():
        pixels = torch.from_numpy(golden["pixels"])
        expected = {"teacher": ImageGraph(restore_teacher(teacher, config).image)(pixels).numpy()}
    direct = EmbedConfig(shards=SHARDS, direct=100, hash_cache=False)
    embedded = embed_snapshot(snapshot, folder, "1", str(place / "store"), "r1", place / "embed", direct)
    return Made(folder, manifest, embedded, _release(place, snapshot, folder, embedded), expected)


def _release(place: Path, snapshot: Snapshot, folder: Path, embedded: EmbedResult) -> Path:
    """The folder that `vitrine release export` writes, of an index over the embedded catalogue."""
    encoders, release, work = EncoderFolder(folder), place / "release", place / "index"
    made = encoders.manifest
    encoder = EncoderRef(
        name=made.name, version="1", run_id="", manifest=describe(folder / "encoder.json", "encoder/encoder.json"),
        document=made.document, document_fingerprint=made.variant(made.document).fingerprint,
        query=made.query, query_fingerprint=made.variant(made.query).fingerprint, dim=made.dim,
    )  # fmt: skip
    config = IndexConfig(shards=SHARDS, family="flat")
    template = train_template(embedded.vectors_uri, config, work)
    built = [build_shard(embedded.vectors_uri, snapshot.uri, template, s, work / str(s)) for s in range(SHARDS)]
    files = {p.name: work / str(s) for s in range(SHARDS) for p in (work / str(s)).iterdir()} | {"golden.npz": work}
    segments = [base_segment(b, "", "index") for b in built]
    search = {"family": "flat", "candidates": 40}
    manifest = draft_manifest(
        name="vit", created_at="2026-12-01T00:00:00+00:00", encoder=encoder, snapshot=snapshot, segments=segments, search=search,
        ranker={}, embedded=embedded, shards=SHARDS, key="",
    )  # fmt: skip
    with np.load(folder / "golden.npz") as golden:
        vectors = golden[made.query]
    locate = {name: where / name for name, where in files.items()}
    searcher = Searcher.open(manifest, local_files(locate))
    manifest = with_golden(manifest, searcher, vectors, work, "", "index")
    (release / "files").mkdir(parents=True)
    for ref in manifest.files():
        shutil.copy(locate[Path(ref.path).name], release / "files" / ref.sha256)
    shutil.copytree(folder, release / "encoders" / encoder.manifest.sha256)
    (release / "1").mkdir()
    (release / "1" / "manifest.json").write_text(manifest.model_dump_json())
    (release / "aliases.json").write_text(json.dumps({"blue": "1", "live": "1"}))
    return release


@pytest.fixture(scope="module")
def url(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A replica in a process of its own, as its container runs it."""
    with Serving(made.release, tmp_path_factory.mktemp("replica") / "replica.log", deadline_s="60") as replica:
        replica.until_ready()
        yield replica.url


def documents(made: Made, snapshot: Snapshot) -> tuple[list[str], np.ndarray]:
    """Product ids and their embedded vectors (n, d) float32."""
    ids = dict(zip(*product_table(snapshot.uri, ["key", "product_id"]).to_pydict().values(), strict=True))
    found: dict[str, np.ndarray] = {}
    for shard in range(SHARDS):
        for file in storage.list_files(f"{made.embedded.vectors_uri}/shard={shard}", ".parquet"):
            table = pq.read_table(file)
            matrix = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
            found |= {ids[k]: v for k, v in zip(table["key"].to_pylist(), matrix.astype(np.float32), strict=True)}
    return list(found), np.stack(list(found.values()))


def test_every_variant_opens_and_fp16_is_kept(made: Made) -> None:
    towers = made.manifest.towers
    assert {"fp32", "fp16"} <= set(towers["teacher"])
    assert all({"fp32", "fp16"} <= set(towers[name]) for name in towers if name != "text")
    assert set(towers["text"]) == {"fp32"}
    half = onnx.load(made.folder / "teacher.fp16.onnx")
    assert {t.data_type for t in half.graph.initializer if len(t.dims) > 1} == {onnx.TensorProto.FLOAT16}
    assert {"Conv", "Softmax", "LayerNormalization"} <= {n.op_type for n in half.graph.node}
    version = EncoderFolder(made.folder)
    with np.load(made.folder / "golden.npz") as golden:
        for variant in towers["teacher"]:
            found = version.open(f"teacher.{variant}").encode(golden["pixels"])
            assert (found * made.expected["teacher"]).sum(axis=1).min() >= TOLERANCES[variant].min_cosine


def test_what_embeds_queries_was_tried_in_every_way_to_int8(made: Made) -> None:
    tower, metrics = made.manifest.query.partition(".")[0], made.manifest.metrics
    assert tower == ("student" if "student" in made.manifest.towers else "teacher")
    tried = {key.split(".")[2] for key in metrics if key.startswith(f"{tower}.int8.") and key.endswith(".cosine")}
    assert tried == {"minmax", "percentile", "minmax_attention_fp32", "dynamic"}
    assert "MRR" in made.manifest.recipe["notes"][f"{tower}.int8"]
    assert (made.folder / f"{tower}.int8.onnx").is_file() == ("int8" in made.manifest.towers[tower])


def test_the_catalogue_is_embedded_by_the_teacher(made: Made, snapshot: Snapshot) -> None:
    assert (made.embedded.embedded, made.embedded.quarantined) == (snapshot.rows, 0)
    names, xb = documents(made, snapshot)
    encoder = EncoderFolder(made.folder).open("teacher.fp32")
    root = Path(snapshot.image_root)
    pixels = [decode((root / "images" / f"{name}.png").read_bytes(), made.manifest.preprocess) for name in names]
    assert np.abs(encoder.encode(np.stack(pixels)) - xb).max() < 1e-3  # vectors are stored in half precision


def test_a_photo_and_words_are_answered_by_the_replica(made: Made, snapshot: Snapshot, url: str) -> None:
    names, xb = documents(made, snapshot)
    version = EncoderFolder(made.folder)
    query, words = version.open(made.manifest.query), TextEncoder.open(version)
    assert words is not None
    photo = (Path(snapshot.image_root) / "images" / "p003-photo2.jpg").read_bytes()
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        by_photo = client.post("/v1/search", files={"image": ("p.jpg", photo)}, data={"k": "12"}).json()
        by_words = client.post("/v1/search", json={"text": "shoe number 5", "k": 12}).json()
    assert f"{by_photo['version']['tower']}.{by_photo['version']['variant']}" == made.manifest.query
    vectors = {"photo": query.encode(decode(photo, made.manifest.preprocess)[None])[0], "words": words.encode("shoe number 5")}
    for answer, xq in ((by_photo, vectors["photo"]), (by_words, vectors["words"])):
        exact = dict(zip(names, xb @ xq, strict=True))
        assert {r["product_id"] for r in answer["results"]} == set(names)
        for result in answer["results"]:
            assert result["similarity"] == pytest.approx(exact[result["product_id"]], abs=2e-3)
