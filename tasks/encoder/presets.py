"""Encoder configuration as frozen dataclasses, and the presets as functions."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.data.augment import Augmentation
from tasks.errors import TrainingError

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class TowerConfig:
    """The network of a tower. Exactly one of `open_clip` and `timm` (timm's models or our own) is set.

    `open_clip`: a model of its list, or the path of a model config of one's own (.json, in open_clip's format).
    `pretrained`: an open_clip tag, "timm" for timm's own weights, a local checkpoint file, or empty for random weights.
    """

    open_clip: str = ""
    timm: str = ""
    pretrained: str = ""


@dataclass(frozen=True)
class TextConfig:
    """The text transformer of a custom model; ignored for open_clip's models, which have their own."""

    context: int = 16
    width: int = 64
    heads: int = 4
    layers: int = 2


@dataclass(frozen=True)
class Recipe:
    """Training hyperparameters of a tower. `steps` are optimizer steps, each of `accumulate` batches of products x pictures."""

    steps: int
    products: int = 32
    """Products in a batch (fewer when the catalogue has fewer)."""
    pictures: int = 4
    """Pictures of each product in a batch: the product's own, and its photos."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: float = 0.1
    """Share of the steps with a rising learning rate; a cosine to zero follows."""
    clip: float = 1.0
    ema_decay: float = 0.98
    accumulate: int = 1
    checkpoint_every: int = 100
    first_size: int = 0
    """Side of the pictures in the first part of the training, when positive: cheaper steps while the features are coarse."""
    first_share: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def for_epochs(self, epochs: float | None, photos: int) -> "Recipe":
        """The recipe with steps for this many passes over `photos` pictures; None keeps its steps."""
        if epochs is None:
            return self
        return replace(self, steps=max(1, round(epochs * photos / (self.products * self.pictures * self.accumulate))))

    def size_at(self, step: int, size: int) -> int:
        """Picture size at a step, for an encoder of input `size`."""
        return self.first_size if self.first_size and step < self.steps * self.first_share else size


@dataclass(frozen=True)
class EncoderConfig:
    """The full configuration of an encoder version. Equal config, data and seed give an equal encoder."""

    name: str
    dim: int
    preprocess: PreprocessSpec
    cache_size: int
    """Side of the decoded pictures that augmentation crops from."""
    teacher: TowerConfig
    student: TowerConfig
    teacher_recipe: Recipe
    student_recipe: Recipe
    text: TextConfig = field(default_factory=TextConfig)
    pair_temperature: float = 0.1
    text_weight: float = 0.2
    alpha: float = 0.3
    """Share of the task loss in the student's loss; the rest is KL to the teacher's similarities."""
    kl_temperature: float = 0.1
    cosine_weight: float = 1.0
    precision: Precision = "bf16"
    """What towers are trained in; bf16 means fp32 on a processor that only emulates it (tasks/encoder/train/towers.py)."""
    photo_days: int = 0
    """Train photos older than so many days before the newest photo are left out; 0: none."""
    seed: int = 7

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for logging and the recipe's key."""
        return asdict(self) | {"preprocess": self.preprocess.model_dump()}

    def with_overrides(self, epochs: float | None, alpha: float | None, photo_days: int | None, photos: int) -> "EncoderConfig":
        """The config with a run's parameters applied; None keeps the preset's value.

        An epoch of `photos` train photos is as many pictures as there are photos; both towers train for `epochs`. Raises
        TrainingError for values that mean nothing.
        """
        if epochs is not None and not epochs > 0:
            raise TrainingError(
                f"epochs={epochs:g} trains nothing; give a number above 0, or leave it empty for the preset's steps"
            )
        if alpha is not None and not 0 <= alpha <= 1:
            raise TrainingError(
                f"alpha={alpha:g} is not a share of the loss; give a number from 0 (imitate only) to 1 (task only)"
            )
        if photo_days is not None and photo_days < 0:
            raise TrainingError(f"a data window of {photo_days} days holds no photo; give a number above 0, or 0 for all photos")
        return replace(
            self,
            alpha=self.alpha if alpha is None else alpha,
            photo_days=self.photo_days if photo_days is None else photo_days,
            teacher_recipe=self.teacher_recipe.for_epochs(epochs, photos),
            student_recipe=self.student_recipe.for_epochs(epochs, photos),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EncoderConfig":
        """Inverse of `as_dict`; ignores other keys (an encoder manifest's recipe has some)."""
        names = {f.name for f in fields(cls)}
        return TypeAdapter(cls).validate_python({k: v for k, v in values.items() if k in names})


def demo() -> EncoderConfig:
    """Minutes on two cores, from random weights (docs/benchmarks.md has the measured recall of this recipe)."""
    quick = Recipe(steps=320, first_size=32, first_share=0.6, augmentation=Augmentation(least_area=0.5, erase=0.0))
    return EncoderConfig(
        name="demo",
        dim=128,
        preprocess=PreprocessSpec(size=48, fit="squash"),
        cache_size=64,
        teacher=TowerConfig(timm="vitrine_residual_w32"),
        student=TowerConfig(timm="vitrine_residual_w14"),
        teacher_recipe=quick,
        student_recipe=replace(quick, steps=220, learning_rate=3e-3),
    )


def small() -> EncoderConfig:
    """A quarter of an hour on two cores: the demo's student under a teacher of nine times its size."""
    config = demo()
    return replace(
        config,
        name="small",
        teacher=TowerConfig(timm="vitrine_residual_w48"),
        teacher_recipe=replace(config.teacher_recipe, steps=400),
        student_recipe=replace(config.student_recipe, steps=400),
    )


def tiny() -> EncoderConfig:
    """Seconds: for tests of everything around the training."""
    few = Recipe(steps=6, products=4, pictures=3, checkpoint_every=2)
    return replace(
        demo(),
        name="tiny",
        dim=16,
        preprocess=PreprocessSpec(size=24),
        cache_size=32,
        teacher=TowerConfig(timm="vitrine_residual_w8"),
        student=TowerConfig(timm="vitrine_residual_w8"),
        teacher_recipe=few,
        student_recipe=few,
        text=TextConfig(context=12, width=16, heads=2, layers=1),
        precision="fp32",
    )


def _large(name: str, teacher: TowerConfig, student: TowerConfig, dim: int = 512) -> EncoderConfig:
    teacher_recipe = Recipe(steps=3400, products=64, pictures=4, learning_rate=1e-5, weight_decay=0.1, ema_decay=0.999)
    return EncoderConfig(
        name=name,
        dim=dim,
        preprocess=PreprocessSpec(size=224, fit="crop"),
        cache_size=256,
        teacher=teacher,
        student=student,
        teacher_recipe=teacher_recipe,
        student_recipe=replace(teacher_recipe, steps=8000, learning_rate=5e-4),
    )


def vit_b16() -> EncoderConfig:
    """CLIP ViT-B-16 fine-tuned on the shop's photos, with a MobileCLIP-class student. Wants a GPU and pretrained weights."""
    return _large("vit_b16", TowerConfig(open_clip="ViT-B-16", pretrained="openai"), TowerConfig(timm="fastvit_mci0"))


def vit_b32() -> EncoderConfig:
    """CLIP ViT-B-32 with a ViT-tiny student: the quickest of the real pairs."""
    return _large("vit_b32", TowerConfig(open_clip="ViT-B-32", pretrained="openai"), TowerConfig(timm="vit_tiny_patch16_224"))


def resnet50_student() -> EncoderConfig:
    """CLIP ViT-L-14 with a ResNet-50 student twelve times smaller: the classic pair."""
    teacher = TowerConfig(open_clip="ViT-L-14", pretrained="openai")
    return _large("resnet50_student", teacher, TowerConfig(timm="resnet50"), dim=768)


PRESETS: dict[str, Callable[[], EncoderConfig]] = {f.__name__: f for f in (demo, small, tiny, vit_b16, vit_b32, resnet50_student)}


def preset(name: str) -> EncoderConfig:
    """The preset of this name. Raises TrainingError listing the valid names."""
    try:
        return PRESETS[name]()
    except KeyError:
        raise TrainingError(f"there is no encoder preset {name!r}; choose one of {', '.join(sorted(PRESETS))}") from None
