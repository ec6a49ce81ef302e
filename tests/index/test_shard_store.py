"""Built shards in the store: another worker opens them, and only whole ones from the same inputs count as built."""

from dataclasses import replace
from pathlib import Path

import pytest

from serving.contract.files import ContractError
from serving.index.searcher import Searcher
from tasks.index.shard_store import locate_shards, store_shard, stored_shard
from tests.index.shop import Shop, build_all, manifest_of


def test_a_stored_shard_is_found_by_its_inputs_and_opened_without_the_folder_it_was_built_in(shop: Shop, tmp_path: Path) -> None:
    template, built = build_all(shop, tmp_path / "worker")
    places = [str(tmp_path / "store" / f"shard-{b.shard}") for b in built]
    found = [stored_shard(place, shop.vectors_uri, shop.snapshot.uri, template) for place in places]
    assert found == [None, None], "nothing is stored yet"
    stored = [store_shard(b, place) for b, place in zip(built, places, strict=True)]
    assert [stored_shard(p, shop.vectors_uri, shop.snapshot.uri, template) for p in places] == stored
    other = replace(template, factory="SQfp16")
    assert stored_shard(places[0], shop.vectors_uri, shop.snapshot.uri, other) is None, "another template is another input"
    (tmp_path / "worker").rename(tmp_path / "gone")
    searcher = Searcher.open(manifest_of(shop, stored), locate_shards(stored, tmp_path / "scratch"))
    assert searcher.rows == len(shop.ids)
    assert not (tmp_path / "scratch").exists(), "a local store is read where it is"


def test_a_damaged_file_of_the_store_is_built_again_and_never_opened(shop: Shop, tmp_path: Path) -> None:
    template, built = build_all(shop, tmp_path / "worker")
    place = tmp_path / "store"
    stored = store_shard(built[0], str(place))
    file = place / stored.index.path
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert stored_shard(str(place), shop.vectors_uri, shop.snapshot.uri, template) is None
    with pytest.raises(ContractError, match="corrupt"):
        locate_shards([stored], tmp_path)(stored.index)
    file.unlink()
    assert stored_shard(str(place), shop.vectors_uri, shop.snapshot.uri, template) is None
    with pytest.raises(ContractError, match="is missing"):
        locate_shards([stored], tmp_path)(stored.index)
