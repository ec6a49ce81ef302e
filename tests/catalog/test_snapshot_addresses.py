"""Catalogues, pictures and stores at addresses that need quoting, and passwords that nobody may see afterwards."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import pytest

from serving.api.product_pictures import picture_path
from tasks import storage
from tasks.catalog.changes.outbox import Outbox
from tasks.catalog.load import load_folder
from tasks.catalog.snapshot import product_table, read_snapshot, take_snapshot
from tasks.catalog.sources.postgresql import split_image_root
from tasks.embed.images import read_image, validator
from tasks.errors import CatalogError
from tasks.masking import public_text
from tasks.settings import Settings
from tests.catalogs import small_catalog
from tests.servers import postgres_server

NAME = "C# 100% shop ü?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_catalog(tmp_path / NAME / "shop")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as uri:
        yield uri


def addresses(folder: Path) -> dict[str, str]:
    """The same catalogue by every local address, and the database beside it."""
    database = f"sqlite:///{folder.parent / 'shop?.db'}"
    load_folder(folder, database)
    return {"path": str(folder), "file": folder.as_uri(), "sqlite": database}


def test_a_folder_of_any_name_is_read_by_every_address(folder: Path) -> None:
    contents = set()
    for kind, uri in addresses(folder).items():
        for store in (str(folder.parent / "store #1"), (folder.parent / "store 2%").as_uri()):
            taken = take_snapshot(uri, storage.join(store, "snapshots"), kind)
            contents.add(taken.content_sha256 if kind != "sqlite" else "sqlite")
            assert taken.rows == 12
            first = product_table(taken.uri)["image_uri"][0].as_py()
            assert len(read_image(first, taken.image_root)) > 100
            assert validator(first, taken.image_root)
            assert picture_path(first, taken.image_root)
            by_uri = (Path(taken.image_root) / first).as_uri()
            assert read_image(by_uri, taken.image_root) == read_image(first, taken.image_root)
            assert picture_path(by_uri, Path(taken.image_root).as_uri()) == picture_path(first, taken.image_root)
    assert len(contents) == 2
    outside = {p.name for p in folder.parent.parent.iterdir()}
    assert outside == {NAME}, "no file appeared under a name cut short"
    assert {p.name for p in folder.parent.iterdir()} == {"shop", "shop?.db", "store #1", "store 2%"}


def test_an_outbox_of_any_name_lies_where_it_was_said(folder: Path) -> None:
    outbox = Outbox.open(f"sqlite:///{folder.parent / 'changes ?#%.db'}")
    outbox.make_tables()
    outbox.close()
    assert (folder.parent / "changes ?#%.db").is_file()


@pytest.mark.parametrize("root", ["/pictures/My Shop", "/pictures/Größe", "/pictures/a&b", f"/pictures/{NAME}"])
def test_image_root_is_percent_decoded(root: str, postgres: str) -> None:
    uri = f"{postgres}{'&' if '?' in postgres else '?'}image_root={quote(root)}"
    assert split_image_root(uri) == (postgres, root)


def test_a_password_is_in_no_record_manifest_or_error(postgres: str, folder: Path, tmp_path: Path) -> None:
    uri = postgres.replace("postgres:@", "postgres:s3cret@")
    assert uri != postgres
    snapshots = str(tmp_path / "snapshots")
    with pytest.raises(CatalogError) as missing:
        take_snapshot(uri, snapshots, "none")
    load_folder(folder, uri)
    taken = take_snapshot(uri, snapshots, "one")
    with pytest.raises(CatalogError) as away:
        take_snapshot("postgresql://shop:s3cret@127.0.0.1:1/shop", snapshots, "two")
    written = [p.read_bytes() for p in Path(snapshots).rglob("*") if p.is_file()]
    seen = [str(missing.value), str(away.value), str(asdict(taken)), str(asdict(read_snapshot(taken.uri)))]
    assert not [text for text in seen if "s3cret" in text]
    assert not [data for data in written if b"s3cret" in data]


def test_a_snapshot_of_an_earlier_release_gives_no_password_away(folder: Path, tmp_path: Path) -> None:
    taken = take_snapshot(str(folder), str(tmp_path / "s"), "old")
    manifest = storage.join(taken.uri, "_manifest.json")
    record = storage.read_json(manifest)
    record["snapshot"]["source"] = "postgresql://shop:s3cret@db/shop"
    storage.write_json(manifest, record)
    assert read_snapshot(taken.uri).source == "postgresql://********@db/shop"


def test_a_text_is_public_without_what_the_settings_hide() -> None:
    settings = Settings(
        catalog="postgresql://shop:pa/ss@db/shop", admin_token="a-token", alert_url="https://chat.example/hooks/T00/B00",
        serving_urls=("http://user:word@a:1",),
    )  # fmt: skip
    text = "pa/ss a-token https://chat.example/hooks/T00/B00 word http://x:y@z/ stays"
    assert public_text(text, settings) == "******** ******** ******** ******** http://********@z/ stays"
