"""Product texts as tokens: titles, and in training randomly their descriptions."""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tasks.encoder.data.photos import TrainingSet
from tasks.encoder.data.tokenizer import encode_texts

DESCRIPTION_SHARE = 0.5
"""How often a product with a description is told by it rather than by its title."""


class TokenBatches:
    """Tokens (m, context) int64 of products at a step; seed and step decide between title and description."""

    def __init__(self, training: TrainingSet, tokenizer: Tokenizer, seed: int) -> None:
        self.training, self.tokenizer, self.seed = training, tokenizer, seed

    def __call__(self, products: Sequence[int] | np.ndarray, number: int) -> Tensor:
        described = np.random.default_rng([self.seed, number, 1]).random(len(products)) < DESCRIPTION_SHARE
        titles, descriptions = self.training.titles, self.training.descriptions
        texts = [descriptions[p] if told and descriptions[p] else titles[p] for p, told in zip(products, described, strict=True)]
        return torch.from_numpy(encode_texts(self.tokenizer, texts))
