"""Encoder configuration as frozen dataclasses: the networks, their training, and the pictures they take."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.data.augment import Augmentation
from tasks.errors import TrainingError

Precision = Literal["bf16", "fp32"]
HUB, FOLDER = "hf-hub:", "local-dir:"
"""How names of models begin that lie on Hugging Face's hub, or in a local folder (open_clip's own notation)."""
NONE = "none"
"""In place of a student: no student. In place of a training: the encoder as it is."""
TEACHER = "teacher"
"""What a student's `pretrained` says where it starts with those of its teacher's weights that it has, too, by name and shape."""


UNKNOWN_LICENCE = "not stated"


@dataclass(frozen=True)
class TowerConfig:
    """The network of a tower: `open_clip` or `timm` names it; where neither does, there is no such tower.

    `open_clip`: a model of its list, "hf-hub:organisation/name", "local-dir:folder", or a model config of one's own (.json).
    `timm`: an image tower of timm's list, or our own (tasks/encoder/train/residual_net.py).
    `pretrained`: an open_clip tag, "timm" for timm's own weights, a local checkpoint file, the name of an installed package of
    weights (tasks/encoder/train/weights.py), or empty for random weights; of a student also "teacher": its teacher's. "hf-hub:" and
    "local-dir:" bring their own.
    """

    open_clip: str = ""
    timm: str = ""
    pretrained: str = ""
    quick_gelu: bool = False
    """The activation of OpenAI's weights. Needed only for a checkpoint file of them: names and tags say it themselves."""
    size: int = 0
    """Side of the pictures that a student computes on, when smaller than the version's: it shrinks them in its own graph."""
    sha256: str = ""
    """Of weights in a local file, filled in when a training is planned: another file of the same name is another recipe."""

    def __bool__(self) -> bool:
        return bool(self.open_clip or self.timm)

    @property
    def starts_pretrained(self) -> bool:
        """Whether the tower starts from somebody's weights."""
        return bool(self.pretrained) or self.open_clip.startswith((HUB, FOLDER))

    def __str__(self) -> str:
        return f"{self.open_clip or self.timm}{self.pretrained and f':{self.pretrained}'}" if self else "none"


@dataclass(frozen=True)
class TextConfig:
    """The text transformer of a custom model; ignored for open_clip's models, which have their own."""

    context: int = 16
    width: int = 64
    heads: int = 4
    layers: int = 2


@dataclass(frozen=True)
class Recipe:
    """Training hyperparameters of a tower. `steps` are optimizer steps, each of `accumulate` batches of products x pictures.

    0 steps: the tower stays as it starts.
    """

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
    pretrained_rate: float = 1.0
    """Learning rate of the layers that came with weights, as a share of that of the new ones on top and beside them."""
    frozen_norm: bool = False
    """Batch norms keep the statistics of the weights they came with: those of small batches are worse, and slower."""
    views: int = 0
    """Of a student: so many fixed views of each picture, whose vectors by the teacher are computed once; 0: new ones at each step."""
    interpolate: bool = False
    """After the training the weights go back towards the pretrained ones, as far as photos kept out of it gain by it."""
    augmentation: Augmentation = field(default_factory=Augmentation)

    def for_epochs(self, epochs: float | None, photos: int) -> "Recipe":
        """The recipe with steps for this many passes over `photos` pictures; None keeps its steps, and 0 steps stay 0."""
        if epochs is None or not self.steps:
            return self
        return replace(self, steps=max(1, round(epochs * photos / (self.products * self.pictures * self.accumulate))))

    def size_at(self, step: int, size: int) -> int:
        """Picture size at a step, for an encoder of input `size`."""
        return self.first_size if self.first_size and step < self.steps * self.first_share else size


STUDENT_RECIPE = Recipe(steps=8000, products=64, learning_rate=5e-4, weight_decay=0.1, ema_decay=0.999)
"""Of a student that is distilled from a pretrained teacher, where nothing else is said."""


@dataclass(frozen=True)
class EncoderConfig:
    """The full configuration of an encoder version. Equal config, data and seed give an equal encoder.

    Without a student, the teacher embeds queries as well. Where the teacher takes 0 steps, the version is a pretrained encoder as
    it is.
    """

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
    licence: str = UNKNOWN_LICENCE
    """Of the weights that the teacher starts from."""
    further_pictures: bool = True
    """Whether further pictures of a product are trained on beside its photos."""
    photo_days: int = 0
    """Train photos older than so many days before the newest photo are left out; 0: none."""
    seed: int = 7

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for logging and the recipe's key."""
        return asdict(self) | {"preprocess": self.preprocess.model_dump()}

    @property
    def trains(self) -> bool:
        """Whether anything is learnt from the catalogue; else its content makes no other encoder."""
        return self.teacher_recipe.steps > 0 or bool(self.student)

    @property
    def has_text(self) -> bool:
        """Whether the version answers words: open_clip's models do, and a timm tower beside which a text tower is trained."""
        return bool(self.teacher.open_clip) or (self.text_weight > 0 and self.teacher_recipe.steps > 0)

    def problems(self) -> Iterator[str]:
        """What means nothing in this config, one sentence each."""
        for name, tower in (("teacher", self.teacher), ("student", self.student)):
            if tower.open_clip and tower.timm:
                yield f"{name} names both open_clip {tower.open_clip!r} and timm {tower.timm!r}; name one network"
        if not self.teacher:
            yield "teacher names no network; set its open_clip or its timm"
        if self.student.open_clip:
            yield f"student.open_clip is {self.student.open_clip!r}; a student is one of timm's networks: set student.timm"
        if not 0 <= self.student.size <= self.preprocess.size:
            yield f"student.size is {self.student.size}; give a side of at most {self.preprocess.size}, which it is shrunk from"
        if self.teacher.pretrained == TEACHER:
            yield "teacher.pretrained is 'teacher'; only a student starts with its teacher's weights"
        if self.teacher.size:
            yield f"teacher.size is {self.teacher.size}; the teacher's pictures are the version's: set preprocess.size"
        if self.dim < 1:
            yield f"dim is {self.dim}; a vector has at least one number"
        if self.cache_size < self.preprocess.size:
            yield f"cache_size is {self.cache_size}; crops of {self.preprocess.size} pixels need pictures of at least that side"
        if not 0 <= self.alpha <= 1:
            yield f"alpha is {self.alpha:g}; give a share from 0 (imitate only) to 1 (task only)"
        for name in ("pair_temperature", "kl_temperature"):
            if not getattr(self, name) > 0:
                yield f"{name} is {getattr(self, name):g}; give a number above 0"
        for name, recipe in (("teacher_recipe", self.teacher_recipe), ("student_recipe", self.student_recipe)):
            for field_name, least in (
                ("steps", 0),
                ("products", 2),
                ("pictures", 1),
                ("accumulate", 1),
                ("checkpoint_every", 1),
                ("views", 0),
            ):
                if getattr(recipe, field_name) < least:
                    yield f"{name}.{field_name} is {getattr(recipe, field_name)}; at least {least} is needed"
            if not 0 < recipe.pretrained_rate <= 1:
                yield f"{name}.pretrained_rate is {recipe.pretrained_rate:g}; give a share above 0 and up to 1"
            if not recipe.learning_rate > 0:
                yield f"{name}.learning_rate is {recipe.learning_rate:g}; give a number above 0"

    def with_overrides(self, epochs: float | None, alpha: float | None, photo_days: int | None, photos: int) -> "EncoderConfig":
        """The config with a run's parameters applied; None keeps the preset's value.

        An epoch of `photos` train photos is as many pictures as there are photos; both towers train for `epochs`. Raises
        TrainingError for values that mean nothing.
        """
        if epochs is not None and not epochs > 0:
            raise TrainingError(
                f"epochs={epochs:g} trains nothing; give a number above 0, leave it empty for the preset's steps, or choose the "
                "training `none` for the encoder as it is"
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

    def with_student(self, name: str | None) -> "EncoderConfig":
        """The config with the timm tower `name` as its student; "none" leaves the student out, None keeps the preset's."""
        if name is None:
            return self
        recipe = self.student_recipe if self.student_recipe.steps else STUDENT_RECIPE
        return replace(self, student=TowerConfig(timm="" if name == NONE else name), student_recipe=recipe)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EncoderConfig":
        """Inverse of `as_dict`; ignores other keys (an encoder manifest's recipe has some)."""
        names = {f.name for f in fields(cls)}
        return TypeAdapter(cls).validate_python({k: v for k, v in values.items() if k in names})
