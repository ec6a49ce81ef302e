"""The whole job, without Spark, over pictures on S3 and on a host: every kind of bad picture has its row, and none stops the job."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from serving.contract.preprocess import DEFAULT_LIMITS
from tasks import storage
from tasks.catalog.snapshot import product_table, read_snapshot, take_snapshot
from tasks.embed import worker
from tasks.embed.job import EmbedConfig, EmbedResult, embed_snapshot
from tasks.embed.store import EmbeddingStore
from tasks.errors import VitrineError
from tests.embed.shop import encoder, shop
from tests.servers import free_port, s3_server

pytestmark = pytest.mark.slow

CONFIG = EmbedConfig(batch=8, chunk=16, direct=10_000, hosts=(f"127.0.0.1:{free_port()}",), private_hosts=True)


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def picture(color: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 40), color).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return f"s3://shop/{tmp_path.name}"


def run(folder: Path, store: str, key: str) -> EmbedResult:
    taken = take_snapshot(str(folder / "shop"), storage.join(store, "snapshots"), key)
    return embed_snapshot(taken, folder / "encoder", "1", store, key, folder / f"work-{key}", CONFIG)


def reasons(result: EmbedResult) -> dict[str, str]:
    fs, path = storage.filesystem(result.quarantine_uri)
    return {r["image_uri"]: r["reason"] for r in pq.read_table(path, filesystem=fs).to_pylist()}


def test_every_kind_of_bad_picture_has_its_row_and_comes_back_when_its_bytes_change(tmp_path: Path) -> None:
    host = CONFIG.hosts[0]  # nothing listens there
    bad = {
        "images/truncated.jpg": picture((1, 2, 3))[:-200], "images/text.jpg": b"<html>404</html>", "images/empty.jpg": b"",
        "images/bomb.png": bomb(), "images/huge.jpg": b"x" * (DEFAULT_LIMITS.max_bytes + 1), "images/missing.jpg": None,
        "https://elsewhere.example/a.jpg": None, f"http://{host}/a.jpg": None, "../outside.jpg": None, "gopher://a/b.jpg": None,
        "images/p1.jpg/under.jpg": None,
    }  # fmt: skip
    shop(tmp_path / "shop", 30)
    encoder(tmp_path / "encoder")
    with (tmp_path / "shop" / "products.csv").open("a") as rows:
        for number, (uri, data) in enumerate(bad.items()):
            rows.write(f"bad{number},Bad {number},{uri}\n")
            if data is not None:
                (tmp_path / "shop" / uri).write_bytes(data)
    result = run(tmp_path, str(tmp_path / "store"), "one")
    assert (result.catalogue, result.embedded, result.quarantined) == (41, 30, 11)
    assert reasons(result) == dict(zip(bad, [
        "truncated", "not_an_image", "empty", "too_many_pixels", "too_many_bytes", "missing", "forbidden_host", "unreachable",
        "outside_root", "forbidden_scheme", "missing",
    ], strict=True))  # fmt: skip
    for number, uri in enumerate(bad):
        if uri.startswith("images/") and "p1.jpg" not in uri:
            (tmp_path / "shop" / uri).write_bytes(picture((10 * number, 50, 0)))
    again = run(tmp_path, str(tmp_path / "store"), "two")
    assert (again.embedded, again.embedded_now, again.quarantined) == (36, 6, 5)


def test_snapshot_and_embeddings_live_on_s3_whole(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shop(tmp_path / "shop", 40)
    encoder(tmp_path / "encoder")
    table = (tmp_path / "shop" / "products.csv").read_text()
    for number in range(40):
        data = (tmp_path / "shop" / "images" / f"p{number}.jpg").read_bytes()
        storage.write_bytes(f"{bucket}/pictures/p{number}.jpg", data)
    (tmp_path / "shop" / "products.csv").write_text(table.replace("images/", f"{bucket}/pictures/"))
    first = run(tmp_path, bucket, "one")
    assert (first.embedded, first.quarantined, first.embedded_now) == (40, 0, 40)
    assert product_table(read_snapshot(f"{bucket}/snapshots/one").uri)["product_id"].to_pylist()[0] == "p0"

    read: list[str] = []
    real = worker.read_image
    monkeypatch.setattr(worker, "read_image", lambda uri, *rest: read.append(uri) or real(uri, *rest))
    storage.write_bytes(f"{bucket}/pictures/p3.jpg", picture((200, 0, 0)))
    storage.delete(f"{bucket}/pictures/p4.jpg")
    second = run(tmp_path, bucket, "two")
    assert (second.embedded, second.embedded_now, second.reused, second.reasons) == (39, 1, 38, {"missing": 1})
    assert set(read) == {f"{bucket}/pictures/p3.jpg", f"{bucket}/pictures/p4.jpg"}, "an ETag that holds saves reading"

    store = EmbeddingStore(second.store_uri, second.dim)
    commit = next(c for c in store.commits() if c.rows)
    data = bytearray(storage.read_bytes(f"{store.uri}/{commit.name}.parquet"))
    data[len(data) // 2] ^= 1
    storage.write_bytes(f"{store.uri}/{commit.name}.parquet", bytes(data))
    with pytest.raises(VitrineError, match="the file is corrupt"):
        run(tmp_path, bucket, "three")
    part = f"{bucket}/snapshots/one/part-00000.parquet"
    storage.write_bytes(part, storage.read_bytes(part)[:-1] + b"?")
    with pytest.raises(VitrineError, match=r"part-00000\.parquet: its sha256 is .* it is corrupt"):
        product_table(f"{bucket}/snapshots/one")
