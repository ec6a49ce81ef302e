"""Fixed views of the training pictures and the teacher's vectors of them: a student then learns without running its teacher.

A teacher's forward pass costs a small student more than its own step. Computed once, its vectors of a few views of each picture serve
all steps; what the student sees is changed a little more each time, and has to give the vector of the unchanged view.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from serving.contract.files import atomic_write
from tasks.encoder.config import EncoderConfig
from tasks.encoder.data.augment import Augmentation, augment
from tasks.encoder.data.batches import OWN, BalancedBatches, Batch
from tasks.encoder.train.towers import shrink
from tasks.progress import Progress

JITTER = Augmentation(
    least_area=0.8, aspect=1.1, rotation=5.0, flip=False, brightness=0.1, contrast=0.1, saturation=0.1, tint=0.02, erase=0.0
)
"""How much a view is changed each time it is shown."""
BLOCK = 64


class TaughtViews:
    """Views of every picture that `batches` may draw, at the student's side, and what the teacher says of them.

    `pixels` (views, n, s, s, 3) uint8 and `vectors` (views, n, d) float32 lie in files of `folder`; rows are the catalogue's pictures,
    then the photos. Which view of a picture a step shows follows from (seed, step).
    """

    def __init__(
        self, folder: Path, batches: BalancedBatches, config: EncoderConfig, teacher: nn.Module, where: torch.device
    ) -> None:
        self.batches, self.views, self.seed = batches, config.student_recipe.views, config.seed
        self.side = config.student.size or config.preprocess.size
        paths = folder / "views.npy", folder / "vectors.npy"
        if not all(path.is_file() for path in paths):
            self._teach(paths, config, teacher, where)
        self.pixels, self.vectors = (np.load(path, mmap_mode="r") for path in paths)

    def __call__(self, number: int) -> tuple[Batch, np.ndarray]:
        """Batch `number` with views for pictures, and the teacher's vectors (m, d) float32 of this process's part."""
        products, rows = self.batches.plan(number)
        which = np.random.default_rng([self.seed, number]).integers(0, self.views, rows.shape)
        mine = self.batches.replicas.local_slice(len(products))
        place, view = self._places(products, rows)[mine].ravel(), which[mine].ravel()
        batch = Batch(self.pixels[view, place], np.repeat(products, rows.shape[1]), mine.start * rows.shape[1])
        return batch, self.vectors[view, place]

    def _places(self, products: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.where(rows == OWN, products[:, None], rows + len(self.batches.pictures))

    def _teach(self, paths: tuple[Path, Path], config: EncoderConfig, teacher: nn.Module, where: torch.device) -> None:
        """Writes the files; rows of pictures that are never drawn stay empty."""
        pictures, photos, plan = self.batches.pictures, self.batches.photos, self.batches.plan
        drawn = np.concatenate([np.flatnonzero(plan.pictures), plan.rows + len(pictures)])
        shape = self.views, len(pictures) + len(photos)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_write(paths[0]) as one,
            atomic_write(paths[1]) as other,
            Progress("teach", drawn.size * self.views, "views") as bar,
        ):
            pixels = np.lib.format.open_memmap(one, mode="w+", dtype=np.uint8, shape=(*shape, self.side, self.side, 3))
            vectors = np.lib.format.open_memmap(other, mode="w+", dtype=np.float32, shape=(*shape, config.dim))
            for view in range(self.views):
                for start in range(0, len(drawn), BLOCK):
                    rows = drawn[start : start + BLOCK]
                    shown = np.stack([pictures[r] if r < len(pictures) else photos[r - len(pictures)] for r in rows])
                    chance = torch.Generator().manual_seed((config.seed * 1009 + view) * 10_000_019 + start)
                    seen = augment(
                        torch.from_numpy(shown).to(where), config.preprocess.size, config.student_recipe.augmentation, chance
                    )
                    with torch.no_grad():
                        vectors[view, rows] = teacher(seen).float().cpu().numpy()
                    pixels[view, rows] = as_uint8(shrink(seen, self.side)).cpu().numpy()
                    bar.add(len(rows))
            pixels.flush()
            vectors.flush()


def as_uint8(pictures: Tensor) -> Tensor:
    """Pixels (n, s, s, 3) uint8 of pictures (n, 3, s, s) in [0, 1]."""
    return (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
