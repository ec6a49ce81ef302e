"""A picture is read from where its uri says, and from nowhere else."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from serving.api.product_pictures import picture_path
from serving.contract.preprocess import ImageLimits, ImageRejected
from tasks import storage
from tasks.embed.images import fetcher, read_image, validator
from tasks.errors import StoreAway
from tasks.queries import view_store
from tests.servers import free_port


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "shop" / "images").mkdir(parents=True)
    (tmp_path / "shop" / "images" / "a b%20.jpg").write_bytes(b"picture")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "shop" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    return tmp_path / "shop"


def test_a_relative_uri_is_taken_letter_by_letter(root: Path) -> None:
    assert read_image("images/a b%20.jpg", str(root)) == b"picture"


def test_a_file_uri_below_the_root_is_read(root: Path) -> None:
    assert read_image((root / "images" / "a b%20.jpg").as_uri(), str(root)) == b"picture"


def test_an_absolute_path_and_a_file_uri_below_the_root_are_read_however_the_root_is_reached(root: Path, tmp_path: Path) -> None:
    picture, linked = root / "images" / "a b%20.jpg", tmp_path / "linked"
    linked.symlink_to(root)
    behind_link = linked / "images" / "a b%20.jpg"
    uris = [str(picture), str(behind_link), f"{root}/images/../images/a b%20.jpg", behind_link.as_uri()]
    uris += [picture.as_uri().replace("file:///", head) for head in ("FILE:///", "file://localhost/")]
    for uri in uris:
        for base in (root, linked):
            assert read_image(uri, str(base)) == b"picture", f"{uri} below {base}"
            assert validator(uri, str(base)) == validator("images/a b%20.jpg", str(root))


def test_a_picture_outside_the_root_is_told_what_its_path_is_relative_to(root: Path) -> None:
    with pytest.raises(ImageRejected) as caught:
        read_image("/srv/pictures/7.jpg", str(root))
    assert str(caught.value).startswith(
        f"/srv/pictures/7.jpg: lies outside the pictures' folder {root}; a picture's path is relative"
    )
    assert "image_root in VITRINE_CATALOG" in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("../secret.jpg", "outside_root"),
        ("images/../../secret.jpg", "outside_root"),
        ("link.jpg", "outside_root"),
        ("/etc/passwd", "outside_root"),
        ("file:///etc/passwd", "outside_root"),
        ("file:///proc/self/environ", "outside_root"),
        ("images/none.jpg", "missing"),
        ("images/a b%20.jpg/x.jpg", "missing"),
        ("images", "unreadable"),
        ("nul\0.jpg", "unreadable"),
        ("x" * 5000, "unreadable"),
        ("http://pictures.example/a.jpg", "forbidden_host"),
        ("https://other.example/a.jpg", "forbidden_host"),
        ("https://pictures.example@other.example/a.jpg", "forbidden_host"),
        ("https://pictures.example.other.example/a.jpg", "forbidden_host"),
        ("ftp://pictures.example/a.jpg", "forbidden_scheme"),
        ("HTTPS://169.254.169.254/latest", "forbidden_host"),
    ],
)
def test_every_other_place_is_refused_with_its_reason(root: Path, uri: str, reason: str) -> None:
    with pytest.raises(ImageRejected) as caught:
        read_image(uri, str(root), fetcher(("pictures.example",)))
    assert caught.value.reason == reason
    assert len(str(caught.value)) > 10


def test_a_large_file_is_refused_before_it_is_read(root: Path) -> None:
    with pytest.raises(ImageRejected) as caught:
        read_image("images/a b%20.jpg", str(root), limits=ImageLimits(max_bytes=3))
    assert caught.value.reason == "too_many_bytes"


def test_a_validator_changes_with_the_file_and_needs_no_reading(root: Path) -> None:
    before = validator("images/a b%20.jpg", str(root))
    assert before == validator("images/a b%20.jpg", str(root))
    (root / "images" / "a b%20.jpg").write_bytes(b"another picture")
    assert validator("images/a b%20.jpg", str(root)) != before
    assert validator("images/none.jpg", str(root)) is None
    assert validator("https://pictures.example/a.jpg", str(root)) is None


OVER = threading.Event()
"""Set once the host is needed no more."""


class Host(BaseHTTPRequestHandler):
    """A picture host: /tagged has an ETag, /dated a length and a date, /plain neither, /get-only answers no HEAD, /slow hangs."""

    def do_GET(self) -> None:
        if self.path == "/slow":
            OVER.wait()
            return
        name = self.path.strip("/")
        if name == "none" or (name == "get-only" and self.command == "HEAD"):
            self.send_error(404 if name == "none" else 405)
            return
        body = b"picture of " + name.encode()
        self.send_response(200)
        told = {
            "tagged": {"ETag": '"v1"'},
            "dated": {"Last-Modified": "Wed, 25 Nov 2026 00:00:00 GMT"},
            "weak": {"ETag": 'W/"v1"'},
        }
        for header, value in (told.get(name, {}) | {"Content-Length": str(len(body))}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        OVER.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tagged", '17-"v1"'), ("dated", "16-Wed, 25 Nov 2026 00:00:00 GMT"), ("plain", None), ("weak", None), ("get-only", None)],
)
def test_a_pictures_validator_comes_from_its_hosts_headers(host: str, root: Path, name: str, expected: str | None) -> None:
    web = fetcher((host,), private=True)
    assert validator(f"http://{host}/{name}", str(root), web) == expected
    assert read_image(f"http://{host}/{name}", str(root), web) == b"picture of " + name.encode()


def test_a_private_host_is_allowed_by_setting_alone_and_http_with_it(host: str, root: Path) -> None:
    for url, reason in ((f"http://{host}/plain", "forbidden_host"), (f"https://{host}/plain", "forbidden_address")):
        with pytest.raises(ImageRejected) as caught:
            read_image(url, str(root), fetcher((host,)))
        assert caught.value.reason == reason


@pytest.mark.parametrize(("name", "reason", "timeout_s"), [("none", "missing", 60.0), ("slow", "timeout", 0.5)])
def test_what_a_host_does_not_give_has_its_reason(host: str, root: Path, name: str, reason: str, timeout_s: float) -> None:
    with pytest.raises(ImageRejected) as caught:
        read_image(f"http://{host}/{name}", str(root), fetcher((host,), private=True, timeout_s=timeout_s))
    assert caught.value.reason == reason


class ObjectStore(BaseHTTPRequestHandler):
    """Answers every request with the status that the object's name is."""

    def do_HEAD(self) -> None:
        self.send_response(int(self.path.rpartition("/")[2]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of an object store; a picture there is asked for once."""
    once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    alone = {"retry_strategy": once, "connect_timeout": 60, "request_timeout": 60}
    monkeypatch.setattr(storage, "_object_store", lambda _, **options: pafs.S3FileSystem(**alone, **options))
    monkeypatch.setattr(storage, "PAUSES_S", ())
    with ThreadingHTTPServer(("127.0.0.1", 0), ObjectStore) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        for name, value in {"ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "ACCESS_KEY_ID": "test"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_an_object_store_that_is_away_is_no_fault_of_a_picture(object_store: int, status: int) -> None:
    with pytest.raises(StoreAway, match="the object store does not answer as it should"):
        read_image(str(status), "s3://shop/pictures")
    assert validator(str(status), "s3://shop/pictures") is None, "only reading can tell"


def test_an_object_store_that_is_down_is_no_fault_of_a_picture(object_store: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    for uri in ("1.jpg", view_store.view_uri("s3://shop/store", "a" * 64, 1)):
        with pytest.raises(StoreAway, match="NETWORK_CONNECTION"):
            read_image(uri, "s3://shop/pictures")


def test_an_object_that_is_kept_from_us_is_a_fault_of_the_picture(object_store: int) -> None:
    with pytest.raises(ImageRejected) as caught:
        read_image("403", "s3://shop/pictures")
    assert caught.value.reason == "unreadable"


def test_what_is_no_file_is_refused_at_once(root: Path) -> None:
    import os
    import socket

    from tasks.validate.pictures import problem

    os.mkfifo(root / "pipe.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    (root / "a.jpg").symlink_to(root / "b.jpg")
    (root / "b.jpg").symlink_to(root / "a.jpg")
    (root / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "s.jpg"))
        for name in ("pipe.jpg", "loop.jpg", "a.jpg", "folder.jpg", "s.jpg", "x" * 300 + ".jpg", "a\0b.jpg"):
            with pytest.raises(ImageRejected) as refused:
                read_image(name, str(root))
            assert refused.value.reason in ("unreadable", "missing")
            assert problem(name, str(root), ())
            assert picture_path(name, str(root)) is None
    for name in ("http://[::1", "http://[bad]/x.jpg", "://", "file://", "s3:/x"):
        with pytest.raises(ImageRejected):
            read_image(name, str(root), fetcher(("example.com",)))
        assert problem(name, str(root), ("example.com",))
