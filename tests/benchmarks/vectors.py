"""Clustered unit vectors like those of an image encoder: points near a curved 64-dimensional surface in `dim` dimensions.

3,000 clusters of uneven size, each an ellipsoid, through a fixed random two-layer map, plus ambient noise. Queries are new
points, perturbed further; none is in the base. EASY: intrinsic dimension about 12; HARD: about 18.
"""

import numpy as np
import torch

LATENT, HIDDEN, CLUSTERS, BASES = 64, 256, 3000, 64
PRESETS = {"easy": (0.55, 0.10, 0.15), "hard": (1.10, 0.15, 0.35)}
"""Cluster width, ambient noise, query perturbation."""


class Vectors:
    """A fixed world of clusters; every call draws new points from it."""

    def __init__(self, dim: int, preset: str, seed: int = 7) -> None:
        width, self.ambient, self.shift = PRESETS[preset]
        self.rng = g = torch.Generator().manual_seed(seed)
        self.centres = torch.randn(CLUSTERS, LATENT, generator=g)
        spectrum = torch.pow(torch.arange(1, LATENT + 1).float(), -0.6)
        self.spectrum = spectrum / spectrum.pow(2).mean().sqrt()
        self.bases = torch.linalg.qr(torch.randn(BASES, LATENT, LATENT, generator=g))[0]
        self.basis_of = torch.randint(0, BASES, (CLUSTERS,), generator=g)
        self.width = width * torch.exp(0.3 * torch.randn(CLUSTERS, generator=g))
        self.w1 = torch.randn(LATENT, HIDDEN, generator=g) / LATENT**0.5 * 1.3
        self.b1 = torch.randn(HIDDEN, generator=g) * 0.3
        self.w2 = torch.randn(HIDDEN, dim, generator=g) / HIDDEN**0.5
        self.mean = torch.randn(dim, generator=g) * 0.25
        weight = torch.pow(torch.arange(1, CLUSTERS + 1).float(), -0.5)
        self.weight = weight / weight.sum()

    def seeded(self, seed: int) -> "Vectors":
        """The same world, whose next points follow from this seed alone."""
        self.rng.manual_seed(seed)
        return self

    def base(self, n: int) -> np.ndarray:
        """(n, dim) float32."""
        return self._points(self._latent(n))

    def queries(self, n: int) -> np.ndarray:
        """(n, dim) float32."""
        z = self._latent(n)
        return self._points(z + self.shift * torch.randn(z.shape, generator=self.rng))

    def _latent(self, n: int) -> torch.Tensor:
        cluster = torch.multinomial(self.weight, n, replacement=True, generator=self.rng)
        noise = torch.randn(n, LATENT, generator=self.rng) * self.spectrum
        basis = self.basis_of[cluster]
        for b in range(BASES):
            rows = (basis == b).nonzero()[:, 0]
            noise[rows] = noise[rows] @ self.bases[b].T
        return self.centres[cluster] + self.width[cluster][:, None] * noise

    def _points(self, z: torch.Tensor) -> np.ndarray:
        x = torch.nn.functional.gelu(z @ self.w1 + self.b1) @ self.w2 + self.mean
        x += self.ambient * x.std() * torch.randn(x.shape, generator=self.rng)
        return torch.nn.functional.normalize(x, dim=1).numpy()
