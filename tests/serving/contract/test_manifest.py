"""Manifests: what is written is read back the same; format 1 is read as it was; everything else is one sentence."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contract import manifest as contract
from serving.contract.counts import Counts
from serving.contract.files import ContractError, FileRef
from serving.contract.manifest import (
    EncoderManifest,
    EncoderRef,
    Gate,
    IndexManifest,
    Segment,
    SegmentPictures,
    SnapshotRef,
    Variant,
    parse_manifest,
    read_manifest,
)  # fmt: skip
from serving.contract.preprocess import PreprocessSpec
from serving.contract.provenance import MAX_COUNT, EmbeddingCommit, EngineRef, Origin, QuerySet
from tests.tiny import tiny_encoder

FIXTURE = Path(__file__).parents[2] / "compatibility" / "fixture-8710f00.tar.xz"
SHA = "ab" * 32
SIGNATURE = "A" * 86 + "=="

count = st.integers(0, MAX_COUNT)
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
sha = st.binary(min_size=32, max_size=32).map(bytes.hex)
number = st.floats(allow_nan=False, allow_infinity=False)
signature = st.sampled_from(["", SIGNATURE])
file_ref = st.builds(FileRef, run_id=text, path=text, sha256=sha, bytes=count)
queries = st.tuples(count, count).map(lambda n: QuerySet.of(*n))
commit = st.builds(EmbeddingCommit, uri=text, store=text, sha256=sha, fingerprint=text, embedded=count, quarantined=count)
maybe = st.none() | count
segment = st.builds(
    Segment, kind=st.sampled_from(["base", "delta", "tombstones"]), shard=count, sequence=count, rows=count, family=text,
    index=st.none() | file_ref, table=file_ref,
    pictures=st.none() | st.builds(SegmentPictures, rows=count, table=file_ref),
)  # fmt: skip
counts = st.builds(
    Counts, catalogue=count, embedded=count, quarantined=count, indexed=count, tombstoned=count, servable=count, pictures=maybe,
    quarantined_rows=maybe, quarantined_pictures=maybe,
)  # fmt: skip
index_manifest = st.builds(
    IndexManifest, id=text, created_at=text,
    encoder=st.builds(
        EncoderRef, name=text, version=text, run_id=text, manifest=file_ref, document=text, document_fingerprint=text, query=text,
        query_fingerprint=text, dim=st.integers(1, 4096),
    ),
    snapshot=st.builds(SnapshotRef, id=text, uri=text, rows=count, content_sha256=text, image_root=text), shards=count,
    segments=st.lists(segment, max_size=3).map(tuple),
    search=st.dictionaries(text, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | number | text, max_size=3),
    ranker=st.dictionaries(text, text, max_size=2), counts=counts, golden=file_ref,
    gates=st.lists(st.builds(Gate, name=text, value=number, threshold=number, passed=st.booleans(), reason=text), max_size=2).map(tuple),
    parent=text, content_key=text, changes=st.lists(file_ref, max_size=2).map(tuple),
    embeddings=st.lists(commit, max_size=2).map(tuple), queries=queries,
    engine=st.none() | st.builds(EngineRef, name=text, collection=text, rows=count, digest=sha), signature=signature,
)  # fmt: skip
tower = st.dictionaries(
    st.sampled_from(contract.PRECISIONS),
    st.builds(Variant, file=file_ref, fingerprint=text, torchscript=st.none() | file_ref, alone=st.booleans()), min_size=1,
)  # fmt: skip


@st.composite
def encoder_manifest(draw: st.DrawFn) -> EncoderManifest:
    towers = draw(st.dictionaries(st.sampled_from(["teacher", "student", "text"]), tower, min_size=1))
    names = [f"{t}.{v}" for t, variants in towers.items() for v in variants]
    origin = st.builds(Origin, name=text, tag=text, sha256=sha | st.just(""), licence=text)
    return EncoderManifest(
        name=draw(text), dim=draw(st.integers(1, 4096)), preprocess=PreprocessSpec(size=draw(st.integers(1, 1024))), towers=towers,
        document=draw(st.sampled_from(names)), query=draw(st.sampled_from(names)), tokenizer=draw(st.none() | file_ref),
        golden=draw(file_ref), recipe=draw(st.dictionaries(text, text)), metrics=draw(st.dictionaries(text, number)),
        origin=draw(st.none() | origin), trained=draw(st.none() | st.sampled_from(["none", "fine-tuned", "interpolated"])),
        signature=draw(signature),
    )  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(index_manifest | encoder_manifest())
def test_a_manifest_that_is_written_is_read_back_the_same_in_format_2(manifest: IndexManifest | EncoderManifest) -> None:
    data = manifest.to_json().encode()
    assert json.loads(data)["format"] == 2
    assert parse_manifest(data, type(manifest), "it") == manifest


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_whatever_else_is_read_is_refused_in_one_sentence(data: bytes) -> None:
    for kind in (IndexManifest, EncoderManifest):
        with pytest.raises(ContractError, match=r"^it: not a \w+: .+") as refused:
            parse_manifest(data, kind, "it")
        assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, type]]:
    """The manifests of the compatibility fixture, which commit 8710f00 wrote, and their kinds."""
    folder, found = tmp_path_factory.mktemp("before"), []
    with tarfile.open(FIXTURE) as packed:
        for member in packed:
            if member.name.endswith(("/manifest.json", "/encoder.json")):
                packed.extract(member, folder, filter="data")
                kind = EncoderManifest if member.name.endswith("/encoder.json") else IndexManifest
                found.append((folder / member.name, kind))
    return found


def test_format_1_is_read_as_it_was_and_is_written_as_format_2(before: list[tuple[Path, type]]) -> None:
    assert {kind for _, kind in before} == {EncoderManifest, IndexManifest}
    for path, kind in before:
        raw, manifest = json.loads(path.read_bytes()), read_manifest(path, kind)
        assert raw["format"] == manifest.format == 1
        assert json.loads(manifest.model_dump_json()) == raw
        again = parse_manifest(manifest.to_json().encode(), kind, "it")
        assert again.format == 2
        assert again.model_copy(update={"format": 1}) == manifest


def test_a_version_of_before_has_the_digest_it_had(before: list[tuple[Path, type]]) -> None:
    """Gateways and shards of two releases of Vitrine compare it while one replaces the other."""
    path, kind = next((p, k) for p, k in before if p.parts[-3:] == ("release", "3", "manifest.json"))
    assert read_manifest(path, kind).digest() == "5122ebb99e5fb8eb"


def test_a_signature_does_not_change_the_digest(before: list[tuple[Path, type]]) -> None:
    manifest = next(read_manifest(path, kind) for path, kind in before if kind is IndexManifest)
    signed = manifest.model_copy(update={"signature": SIGNATURE})
    assert hashlib.sha256(signed.model_dump_json().encode()).hexdigest()[:16] != signed.digest() == manifest.digest()


@pytest.fixture(scope="module")
def index_json(before: list[tuple[Path, type]]) -> dict[str, Any]:
    path = next(path for path, kind in before if kind is IndexManifest)
    return json.loads(path.read_bytes())


NEWER = "3 is the format of a newer Vitrine; this one reads formats 1 and 2: upgrade it first"
COMMIT = {"uri": "u", "store": "s", "sha256": SHA, "fingerprint": "f", "embedded": 1, "quarantined": 0}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"format": 3}, f"format: {NEWER}"),
        ({"format": 0}, "format: 0 is no format of a manifest; 1 and 2 are"),
        ({"format": True}, "format: True is no format"),
        ({"format": "2"}, "format: '2' is no format"),
        ({"format": 1.0}, "format: 1.0 is no format"),
        ({"counts": {"catalogue": -1}}, "counts.catalogue: Input should be greater than or equal to 0"),
        ({"counts": {"pictures": 2**60}}, "counts.pictures: Input should be less than or equal to 9007199254740992"),
        ({"counts": {"quarantined_rows": "7"}}, "counts.quarantined_rows: Input should be a valid integer"),
        ({"counts": {"servable": 1.5}}, "counts.servable: Input should be a valid integer"),
        ({"embeddings": [COMMIT | {"sha256": "no"}]}, "embeddings.0.sha256: String should match pattern"),
        ({"embeddings": [COMMIT | {"uri": ""}]}, "embeddings.0.uri: String should have at least 1 character"),
        ({"embeddings": COMMIT}, "embeddings: Input should be a valid"),
        ({"queries": {"kind": "clicks"}}, "queries.kind: Input should be 'photos', 'synthetic' or 'mixed'"),
        (
            {"queries": {"kind": "photos", "photos": 3, "synthetic": 4}},
            "queries: the queries are called 'photos', and 3 photos and 4 synthetic ones are 'mixed'",
        ),
        ({"queries": {"kind": "photos"}}, "queries: the queries are called 'photos', and 0 photos and 0 synthetic ones are 'nothing'"),
        ({"engine": {"name": "milvus", "collection": "c", "rows": -3, "digest": SHA}}, "engine.rows: Input should be greater"),
        ({"signature": "mine"}, "signature: String should match pattern"),
        ({"shards": 10**400}, "shards: "),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_an_index_manifest_with_one_wrong_value_names_it(
    changed: dict[str, Any], sentence: str, index_json: dict[str, Any]
) -> None:
    raw = json.loads(json.dumps(index_json))
    for name, value in changed.items():
        raw[name] = raw[name] | value if name == "counts" else value
    with pytest.raises(ContractError) as refused:
        parse_manifest(json.dumps(raw).encode(), IndexManifest, "manifest.json")
    assert str(refused.value).startswith(f"manifest.json: not a IndexManifest: {sentence}")


ORIGIN = {"name": "efficientnet-lite0", "tag": "0.1.0", "licence": "Apache-2.0"}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"format": 3}, f"format: {NEWER}"),
        ({"dim": 0}, "dim: Input should be greater than 0"),
        ({"dim": 10**9}, "dim: Input should be less than or equal to 65536"),
        ({"document": "teacher.fp32"}, "the file: document names 'teacher.fp32', and there is student.fp32"),
        ({"query": "student.int8"}, "the file: query names 'student.int8', and there is student.fp32"),
        ({"towers": {}}, "the file: document names 'student.fp32', and there is no tower at all"),
        ({"trained": "a bit"}, "trained: Input should be 'none', 'fine-tuned' or 'interpolated'"),
        ({"origin": ORIGIN | {"licence": ""}}, "origin.licence: String should have at least 1 character"),
        ({"origin": ORIGIN | {"tag": ""}}, "origin: the weights of 'efficientnet-lite0' have neither a tag nor a sha256"),
        ({"origin": ORIGIN | {"sha256": "12"}}, "origin.sha256: String should match pattern"),
    ],
)  # fmt: skip
def test_an_encoder_manifest_with_one_wrong_value_names_it(changed: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    raw = json.loads(tiny_encoder(tmp_path).to_json()) | changed
    with pytest.raises(ContractError) as refused:
        parse_manifest(json.dumps(raw).encode(), EncoderManifest, "encoder.json")
    assert str(refused.value).startswith(f"encoder.json: not a EncoderManifest: {sentence}")


def test_a_variant_that_no_reader_knows_is_named(tmp_path: Path) -> None:
    raw = json.loads(tiny_encoder(tmp_path).to_json())
    raw["towers"]["student"]["int4"] = raw["towers"]["student"]["fp32"]
    with pytest.raises(ContractError, match=r"there is no variant 'student\.int4'; a tower's variants are fp32, fp16, int8"):
        parse_manifest(json.dumps(raw).encode(), EncoderManifest, "encoder.json")


def test_a_manifest_of_absurd_size_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "MAX_BYTES", 1000)
    (tmp_path / "manifest.json").write_text(" " * 1001)
    with pytest.raises(ContractError, match=r"manifest\.json: not a IndexManifest: it has more than 1000 bytes"):
        read_manifest(tmp_path / "manifest.json", IndexManifest)
