"""A picture is read from where its uri says, and from nowhere else."""

from pathlib import Path

import pytest

from serving.contract.preprocess import ImageLimits, ImageRejected
from tasks.embed.images import read_image, stamp


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
        read_image(uri, str(root), hosts=("pictures.example",))
    assert caught.value.reason == reason
    assert len(str(caught.value)) > 10


def test_a_large_file_is_refused_before_it_is_read(root: Path) -> None:
    with pytest.raises(ImageRejected) as caught:
        read_image("images/a b%20.jpg", str(root), limits=ImageLimits(max_bytes=3))
    assert caught.value.reason == "too_many_bytes"


def test_a_stamp_changes_with_the_file_and_needs_no_reading(root: Path) -> None:
    before = stamp("images/a b%20.jpg", str(root))
    assert before == stamp("images/a b%20.jpg", str(root))
    (root / "images" / "a b%20.jpg").write_bytes(b"another picture")
    assert stamp("images/a b%20.jpg", str(root)) != before
    assert stamp("images/none.jpg", str(root)) is None
    assert stamp("https://pictures.example/a.jpg", str(root)) is None
