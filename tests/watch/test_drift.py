"""Drift: nothing moved looks like chance, a moved cloud does not, and too few vectors say nothing."""

from pathlib import Path

import numpy as np
import pytest

from tasks.watch.drift import LEAST, drift, load, reference, save, stability_index


def cloud(seed: int, n: int = 2000, d: int = 32, moved: float = 0.0) -> np.ndarray:
    """Unit vectors whose spread differs by direction."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, d)) * np.linspace(1.0, 0.1, d) + moved * np.eye(d)[0]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_two_samples_of_one_cloud_differ_by_about_chance() -> None:
    seen = [drift(cloud(seed), reference(cloud(0))) for seed in range(1, 11)]
    assert np.mean([s.index for s in seen]) < 3 * seen[0].noise
    assert max(s.index for s in seen) < 0.1
    assert seen[0].noise == pytest.approx(9 * 2 / 2000)


@pytest.mark.parametrize(("moved", "least", "most"), [(0.2, 0.01, 0.25), (1.0, 0.25, 5.0)])
def test_a_moved_cloud_shows(moved: float, least: float, most: float) -> None:
    seen = drift(cloud(1, moved=moved), reference(cloud(0)))
    assert least < seen.index < most
    assert seen.shift > drift(cloud(1), reference(cloud(0))).shift


def test_a_new_kind_of_vectors_shows_though_the_mean_stays() -> None:
    base = cloud(0)
    narrow = base - base.mean(axis=0)
    seen = drift(base.mean(axis=0) + 0.2 * narrow, reference(base))
    assert seen.shift < 1e-3
    assert seen.index > 0.25


def test_the_index_is_the_textbook_sum() -> None:
    """Four equal bins by the reference; now 10, 20, 30 and 40 of 100."""
    values = np.repeat([0.5, 1.5, 2.5, 3.5], [10_000, 20_000, 30_000, 40_000])
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    expected = float(((shares - 0.25) * np.log(shares / 0.25)).sum())
    assert stability_index(values, np.array([1.0, 2.0, 3.0])) == pytest.approx(expected, rel=1e-3)


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=f"99 vectors, where at least {LEAST}"):
        reference(cloud(0, n=99))


def test_a_reference_is_kept_and_read_back(tmp_path: Path) -> None:
    uri = str(tmp_path / "watch" / "a.npz")
    assert load(uri) is None
    base = reference(cloud(0))
    save(base, uri)
    kept = load(uri)
    assert kept is not None
    assert drift(cloud(1), kept).index == drift(cloud(1), base).index
