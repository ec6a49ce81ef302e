"""A version of a family that is built no more, made here by FAISS as it was built before: it answers, is checked and refreshed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.contract.files import describe
from serving.contract.manifest import IndexManifest
from serving.contract.segments import write_index
from serving.index.collection import NOWHERE
from serving.index.faiss_engine import omp_threads
from serving.index.searcher import Searcher
from tasks.errors import VitrineError
from tasks.index.build import build_shard
from tasks.index.choice import IndexConfig
from tasks.index.delta import add_delta, code_deltas, merge_deltas
from tasks.index.families import FAMILIES, RETIRED, list_count
from tasks.index.template import Template, coarse_fit, make_index, train_template
from tasks.index.verify_version import _segments, _vectors
from tests.index.shop import Shop, clustered, manifest_of
from tests.index.test_delta import changes_of

D = 32


@pytest.mark.parametrize("family", RETIRED)
def test_a_version_of_a_retired_family_answers_and_is_refreshed(family: str, wide_shop: Shop, tmp_path: Path) -> None:
    template = trained(family, wide_shop, tmp_path)
    # What builds shards knows only families that are built: to it, these are some other lists.
    other, uri = replace(template, family="ivf_flat"), wide_shop.snapshot.uri
    built = [build_shard(wide_shop.vectors_uri, uri, other, n, tmp_path / f"shard-{n}") for n in range(wide_shop.shards)]
    manifest = manifest_of(wide_shop, [replace(b, family=family) for b in built], {"nprobe": 256, "k_factor": 4})
    check(manifest, tmp_path, len(wide_shop.keys))
    xq = clustered(np.random.default_rng(3), 40, D)
    truth = wide_shop.keys[np.argsort(-(xq @ wide_shop.vectors.T), axis=1)[:, :10]]
    assert recall(manifest, tmp_path, xq, truth) > (0.99 if RETIRED[family].exact else 0.8)

    new = clustered(np.random.default_rng(4), 20, D)
    changes = changes_of(wide_shop, dict(enumerate(new, 20_000)), {3, 4, 5})
    refreshed = manifest.model_copy(update={"segments": add_delta(manifest, changes, tmp_path / "hour", prefix="hour")})
    coded = code_deltas(refreshed, lambda ref: tmp_path / ref.path, template, tmp_path / "coded", prefix="coded")
    assert {s.family for s in coded if s.kind == "delta"} == {family}
    again = changes_of(wide_shop, {20_000: new[1]}, {6})
    for segments, of in ((refreshed.segments, None), (coded, template)):
        later = refreshed.model_copy(update={"segments": segments})
        more = add_delta(later, again, tmp_path / "later", prefix="later")
        later = later.model_copy(update={"segments": more})
        merged = merge_deltas(later, lambda ref: tmp_path / ref.path, tmp_path / "merged", prefix="merged", template=of)
        for version in (later, later.model_copy(update={"segments": merged})):
            searcher = check(version, tmp_path, len(wide_shop.keys) + 20 - 4)
            found = searcher.features.key[searcher.search(new[1:], 10).rows]
            assert all(key in row for key, row in zip(changes.rows["key"].to_numpy()[1:], found, strict=True))
            gone = np.concatenate([changes.deletes, again.deletes])
            assert not np.isin(searcher.features.key[searcher.search(xq, 200).rows], gone).any()


@pytest.mark.parametrize("family", RETIRED)
def test_a_rebuild_leaves_a_retired_family_and_trains_anew(family: str, wide_shop: Shop, tmp_path: Path) -> None:
    previous = trained(family, wide_shop, tmp_path)
    made = train_template(wide_shop.vectors_uri, IndexConfig(shards=2, family="ivf_fs_sq8"), tmp_path / "next", previous)
    assert f"its family {family} is now ivf_fs_sq8" in made.reason
    with pytest.raises(
        VitrineError, match=f"'{family}' is built no more, though its versions are served and refreshed; choose one"
    ):
        train_template(wide_shop.vectors_uri, IndexConfig(shards=2, family=family), tmp_path / "again", previous)
    assert family not in FAMILIES


def trained(family: str, shop: Shop, folder: Path) -> Template:
    """The template that commit 8710f00 would have trained."""
    factory = RETIRED[family].factory(D, list_count(len(shop.keys)))
    index = make_index(D, factory)
    with omp_threads(1):
        index.train(shop.vectors)
    path = folder / "template.faiss"
    write_index(path, index)
    sha = describe(path, path.name).sha256
    fit = coarse_fit(index, shop.vectors[:1000])
    return Template(family, factory, D, shop.shards, len(shop.keys), str(path), sha, shop.vectors_uri, fit)


def check(manifest: IndexManifest, folder: Path, live: int) -> Searcher:
    """The version opened, after what `vitrine index check` asks of its segments and vectors."""
    opened: list[Searcher] = []
    _segments(manifest, lambda ref: folder / ref.path, opened, NOWHERE)
    _vectors(opened[0])
    assert opened[0].live_rows == live
    return opened[0]


def recall(manifest: IndexManifest, folder: Path, xq: np.ndarray, truth: np.ndarray) -> float:
    searcher = check(manifest, folder, manifest.counts.servable)
    found = searcher.features.key[searcher.search(xq, 100).rows]
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))
