"""Augmentation: drawn by the generator alone, inside the picture, in range."""

import torch

from tasks.encoder.data.augment import Augmentation, augment, to_float

STILL = Augmentation(
    least_area=1.0, aspect=1.0, rotation=0.0, flip=False, brightness=0, contrast=0, saturation=0, tint=0, erase=0
)


def pictures(n: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_same_generator_gives_the_same_pictures_and_another_others() -> None:
    first, again, other = (augment(pictures(), 24, Augmentation(), torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (4, 3, 24, 24)
    assert float(first.min()) >= 0.0
    assert float(first.max()) <= 1.0


def test_no_strength_leaves_the_picture_as_it_is() -> None:
    found = augment(pictures(), 32, STILL, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, to_float(pictures()), atol=1e-5, rtol=0)


def test_flipping_mirrors_left_and_right() -> None:
    how = Augmentation(**{**STILL.__dict__, "flip": True})
    found = augment(pictures(64), 32, how, torch.Generator().manual_seed(0))
    before = to_float(pictures(64))
    mirrored = [torch.allclose(f, b.flip(-1), atol=1e-5) for f, b in zip(found, before, strict=True)]
    same = [torch.allclose(f, b, atol=1e-5) for f, b in zip(found, before, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48


def test_erasing_hides_a_rectangle_of_the_stated_area() -> None:
    how = Augmentation(**{**STILL.__dict__, "erase": 1.0})
    white = torch.full((32, 64, 64, 3), 255, dtype=torch.uint8)
    hidden = (augment(white, 64, how, torch.Generator().manual_seed(0)) == 0.5).float().mean(dim=(1, 2, 3))
    assert float(hidden.min()) > 0.03
    assert float(hidden.max()) < 0.28
