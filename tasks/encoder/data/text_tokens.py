"""Product texts as tokens: titles, and in training randomly their descriptions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
from torch import Tensor

from tasks.encoder.data.photos import TrainingSet
from tasks.encoder.presets import EncoderConfig
from tasks.encoder.train.towers import Teacher

DESCRIPTION_SHARE = 0.5
"""How often a product with a description is told by it rather than by its title."""


class TokenBatches:
    """Tokens (m, context) int64 of products at a step; seed and step decide between title and description."""

    def __init__(self, training: TrainingSet, config: EncoderConfig, context: int) -> None:
        self.training, self.seed, self.context = training, config.seed, context
        self.tokenizer = tokenizer(config)

    def __call__(self, products: Sequence[int] | np.ndarray, number: int) -> Tensor:
        described = np.random.default_rng([self.seed, number, 1]).random(len(products)) < DESCRIPTION_SHARE
        titles, descriptions = self.training.titles, self.training.descriptions
        texts = [descriptions[p] if told and descriptions[p] else titles[p] for p, told in zip(products, described, strict=True)]
        return self.tokenizer(texts, context_length=self.context)


def title_tokens(training: TrainingSet, config: EncoderConfig, teacher: Teacher) -> Tensor:
    """Tokens (products, context) int64 of the products' titles."""
    return tokenizer(config)(list(training.titles), context_length=teacher.context())


def tokenizer(config: EncoderConfig) -> Any:
    """The tokenizer of the teacher's text tower."""
    name = config.teacher.open_clip
    return open_clip.get_tokenizer(name) if name and not name.endswith(".json") else open_clip.SimpleTokenizer()
