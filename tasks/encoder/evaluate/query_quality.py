"""The mean reciprocal rank of held-out photos against the teacher's documents, as a measure of query variants.

Of few products Recall@10 says too little: an int8 that kept it whole had lost 12 of 70 points of Recall@1.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from serving.contract.encoder import Encoder
from tasks.encoder.config import EncoderConfig
from tasks.encoder.data.photos import TrainingSet
from tasks.encoder.data.pixels import cached_pixels
from tasks.encoder.evaluate.retrieval_metrics import mean_reciprocal_rank, ranks
from tasks.encoder.evaluate.vectors import encode


def query_quality(teacher: Path, training: TrainingSet, config: EncoderConfig, work: Path) -> Callable[[Encoder], float] | None:
    """A function from a query encoder to its mean reciprocal rank against `teacher`'s documents; None without held-out photos."""
    photos = training.held_out()
    if not len(photos):
        return None
    documents = cached_pixels(training.image_uris, training.root, config.preprocess, work / "pixels", "document", 1.0)
    queries = cached_pixels(photos.uris, training.root, config.preprocess, work / "pixels", "query", 1.0)
    xb = encode(teacher, documents.array)

    def measure(encoder: Encoder) -> float:
        similarity = encode(encoder, queries.array) @ xb.T
        similarity[:, ~documents.usable] = -np.inf
        return mean_reciprocal_rank(ranks(similarity, photos.products)[queries.usable])

    return measure
