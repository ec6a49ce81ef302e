"""The losses of teacher and student, as pure functions of unit vectors and product numbers."""

import torch
from torch import Tensor
from torch.nn import functional


def pair_loss(vectors: Tensor, products: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, L_out): every other picture of the same product is a positive.

    `vectors` (n, d) unit length, `products` (n,) int64. Rows without a positive do not count.
    """
    logits = vectors.float() @ vectors.float().T / temperature
    self_mask = torch.eye(len(products), dtype=torch.bool, device=logits.device)
    positive = (products[:, None] == products[None, :]) & ~self_mask
    log_share = logits - torch.logsumexp(logits.masked_fill(self_mask, float("-inf")), dim=1, keepdim=True)
    count = positive.sum(dim=1)
    per_row = -(log_share * positive).sum(dim=1) / count.clamp(min=1)
    return per_row[count > 0].mean() if bool((count > 0).any()) else per_row.sum() * 0.0


def text_loss(images: Tensor, texts: Tensor, image_products: Tensor, text_products: Tensor, scale: Tensor) -> Tensor:
    """Contrastive image-text loss in both directions, where several pictures share one text.

    `images` (n, d), `texts` (m, d) unit length; one text per product. `scale` is the learned inverse temperature.
    """
    logits = scale * images.float() @ texts.float().T
    match = (image_products[:, None] == text_products[None, :]).float()
    to_text = -(functional.log_softmax(logits, dim=1) * match).sum(dim=1).mean()
    per_text = (functional.log_softmax(logits, dim=0) * match).sum(dim=0) / match.sum(dim=0).clamp(min=1)
    return (to_text - per_text.mean()) / 2


def search_loss(queries: Tensor, documents: Tensor, places: Tensor, temperature: float) -> Tensor:
    """Cross entropy of finding each query's own document (row `places[i]` of `documents`); rows with -1 do not count."""
    known = places >= 0
    if not bool(known.any()):
        return queries.float().sum() * 0.0
    logits = queries[known].float() @ documents.float().T / temperature
    return functional.cross_entropy(logits, places[known])


def imitation_loss(student: Tensor, teacher: Tensor, documents: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) over similarity distributions: each row's softmax against the teacher's vectors `documents`.

    The student's row is measured against the teacher's vectors, as at search time. Scaled by temperature squared
    (Hinton et al. 2015) would undo the small temperature used here, so it is not.
    """
    target = functional.log_softmax(teacher.float() @ documents.float().T / temperature, dim=1)
    found = functional.log_softmax(student.float() @ documents.float().T / temperature, dim=1)
    return functional.kl_div(found, target, reduction="batchmean", log_target=True)


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of each student vector with its teacher's, averaged."""
    return 1.0 - (student.float() * teacher.float()).sum(dim=1).mean()
