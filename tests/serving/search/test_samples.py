"""Which queries are kept, what of them, and for how long."""

import base64
import threading

import numpy as np
import pytest

from serving.search import samples
from serving.search.samples import Samples
from serving.settings import ServingSettings

VECTOR = np.array([0.6, 0.8], np.float32)
PRINT, OTHER = "a" * 64, "b" * 64


def test_only_the_share_that_is_asked_for_is_kept() -> None:
    rng = np.random.default_rng(0)
    some = Samples(0.25, 10_000, chance=lambda: float(rng.random()))
    none, every = Samples(0.0, 10), Samples(1.0, 10)
    for _ in range(4000):
        some.offer("photo", PRINT, "", VECTOR, None)
    for kept in (none, every):
        kept.offer("photo", PRINT, "", VECTOR, None)
    assert 800 < some.count < 1200
    assert (none.count, every.count) == (0, 1)


def test_the_ring_is_bounded_newest_first_and_by_encoder() -> None:
    kept = Samples(1.0, 3)
    for n in range(5):
        kept.offer("photo", PRINT if n % 2 else OTHER, str(n), VECTOR, None)
    assert [s.photo_sha256 for s in kept.newest(10)] == ["4", "3", "2"]
    assert [s.photo_sha256 for s in kept.newest(1)] == ["4"]
    assert [s.photo_sha256 for s in kept.newest(10, PRINT)] == ["3"]


@pytest.mark.parametrize("length", [0.83, 1.0, 1.2])
def test_a_sampled_vector_can_be_asked_again_whatever_its_length(length: float) -> None:
    """A product's vector out of an index of codes alone is an estimate: replays must not be refused for it."""
    kept = Samples(1.0, 1)
    kept.offer("product", PRINT, "", VECTOR * np.float32(length), None)
    np.testing.assert_allclose(kept.newest(1)[0].vector, VECTOR, atol=1e-6)


def test_photos_are_kept_only_where_they_may_and_within_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "PHOTO_BYTES", 25)
    private, open_ = Samples(1.0, 10), Samples(1.0, 10, photos=True)
    for kept in (private, open_):
        for n in range(4):
            kept.offer("photo", PRINT, str(n), VECTOR, bytes([n]) * 10)
    assert [s.photo for s in private.newest(10)] == [None] * 4
    assert [s.photo for s in open_.newest(10)] == [bytes([3]) * 10, bytes([2]) * 10, None, None]
    assert [s.photo_sha256 for s in open_.newest(10)] == ["3", "2", "1", "0"]
    wire = open_.newest(1)[0].wire()
    assert np.frombuffer(base64.b64decode(wire["vector"]), "<f4").tolist() == VECTOR.tolist()


def test_a_sample_is_its_own_copy_and_threads_lose_none() -> None:
    kept = Samples(1.0, 10_000)
    vector = VECTOR.copy()
    kept.offer("vector", PRINT, "", vector, None)
    vector[:] = 0
    assert kept.newest(1)[0].vector.tolist() == VECTOR.tolist()

    def offer() -> None:
        for _ in range(500):
            kept.offer("text", PRINT, "", VECTOR, None)

    threads = [threading.Thread(target=offer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(s.number for s in kept.newest(5000)) == list(range(1, 2002))


def test_the_settings_are_read() -> None:
    loaded = ServingSettings.load({"VITRINE_SAMPLE_RATE": "0.5", "VITRINE_SAMPLE_KEPT": "7", "VITRINE_SAMPLE_PHOTOS": "true"})
    assert (loaded.sample_rate, loaded.sample_kept, loaded.sample_photos) == (0.5, 7, True)
    with pytest.raises(ValueError, match="VITRINE_SAMPLE_PHOTOS='perhaps' is not yes or no"):
        ServingSettings.load({"VITRINE_SAMPLE_PHOTOS": "perhaps"})
