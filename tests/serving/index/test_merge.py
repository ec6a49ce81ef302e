"""Gathering from parts gives what asking every part for everything gives, and asks for less."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.index.merge import Neighbors, Partition, empty, gather, merge, over_fetch, stack


def sources_of(parts: list[np.ndarray], rows: list[np.ndarray], asked: list[int]) -> list[Partition]:
    """Exact sources over similarities (nq, n) of each part; `asked` collects what they are asked for."""

    def source(similarity: np.ndarray, mine: np.ndarray) -> Partition:
        def ask(which: np.ndarray, k: int) -> Neighbors:
            asked.append(len(which) * k)
            rows = np.broadcast_to(mine, (len(which), len(mine)))
            found = merge([Neighbors(similarity[which], rows)], k)
            return found

        return Partition(ask, len(mine) / sum(map(len, rows)))

    return [source(s, r) for s, r in zip(parts, rows, strict=True)]


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    k=st.integers(1, 50),
    seed=st.integers(0, 10_000),
    skew=st.sampled_from([0.0, 3.0]),
    distinct=st.sampled_from([5, 10_000]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_gathering_is_asking_everyone_for_everything(sizes: list[int], k: int, seed: int, skew: float, distinct: int) -> None:
    """Also when one part holds all the best (skew), and when many similarities are equal (few distinct values)."""
    rng = np.random.default_rng(seed)
    rows = np.split(rng.permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    parts = [
        (np.floor(distinct * rng.random((3, n))) / distinct + skew * (i == 0)).astype(np.float32) for i, n in enumerate(sizes)
    ]
    found = gather(sources_of(parts, rows, []), 3, k)
    whole = merge([Neighbors(s, np.broadcast_to(r, s.shape)) for s, r in zip(parts, rows, strict=True)], k)
    np.testing.assert_array_equal(found.similarity, whole.similarity)
    np.testing.assert_array_equal(found.rows, whole.rows)
    mine, last = over_fetch(sources_of(parts, rows, []), 3, k)
    np.testing.assert_array_equal(last, whole.similarity[:, -1])
    named = [{*f.rows[q].tolist()} for f in mine for q in range(3)]
    better = [{*r[s[q] > last[q]].tolist()} for s, r in zip(parts, rows, strict=True) for q in range(3)]
    assert all(b <= n for b, n in zip(better, named, strict=True))


def test_parts_are_asked_for_little_more_than_their_share() -> None:
    rng = np.random.default_rng(1)
    rows = np.split(np.arange(80_000), 8)
    asked: list[int] = []
    gather(sources_of([rng.random((1, 10_000), np.float32) for _ in rows], rows, asked), 1, 2000)
    assert len(asked) == 8
    assert sum(asked) < 1.5 * 2000


@pytest.mark.parametrize("nq", [1, 3])
def test_nothing_is_no_row(nq: int) -> None:
    assert (empty(nq, 4).rows == -1).all()
    assert np.isneginf(empty(nq, 4).similarity).all()


def test_results_of_several_queries_have_the_columns_of_the_widest() -> None:
    found = [Neighbors(np.full((1, n), 0.5, np.float32), np.full((1, n), n)) for n in (2, 0, 3)]
    for k, columns in ((0, 3), (5, 5)):
        block = stack(found, k)
        assert (block.rows >= 0).sum(axis=1).tolist() == [2, 0, 3]
        assert block.rows.shape == block.similarity.shape == (3, columns)
        assert np.isneginf(block.similarity[block.rows < 0]).all()
    assert stack(found[:1], 4).rows.tolist() == [[2, 2, -1, -1]]
    assert stack([], 4).rows.shape == (0, 4)


@given(seed=st.integers(0, 1000), large=st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_merging_is_sorting_by_similarity_then_row(seed: int, large: bool) -> None:
    """Handles of rows and keys of 64 bits alike; what is no row comes last."""
    rng = np.random.default_rng(seed)
    similarity = rng.choice(np.float32([-1, -0.5, -0.0, 0.0, 0.25, 1, 3e38]), (2, 40)) + rng.choice([0, 0.1], (2, 40))
    similarity = similarity.astype(np.float32)
    rows = np.stack([rng.permutation(1000)[:40] for _ in range(2)]) + (2**40 if large else 0)
    rows[:, rng.integers(0, 40, 3)] = -1
    found = merge([Neighbors(similarity[:, :25], rows[:, :25]), Neighbors(similarity[:, 25:], rows[:, 25:])], 30)
    for q in range(2):
        seen = sorted((-s if r >= 0 else np.inf, r) for s, r in zip(similarity[q].tolist(), rows[q].tolist(), strict=True))[:30]
        assert found.rows[q].tolist() == [r for _, r in seen]
        assert found.similarity[q].tolist() == [-s for s, _ in seen]
    assert found.similarity.dtype == np.float32
