"""The losses against their written-out definitions."""

import math

import pytest
import torch
from torch.nn import functional

from tasks.encoder.train.losses import cosine_loss, imitation_loss, pair_loss, search_loss, text_loss


def unit(n: int, d: int = 8, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_pair_loss_is_the_supervised_contrastive_one() -> None:
    vectors, products = unit(6), torch.tensor([0, 0, 1, 1, 1, 2])
    expected = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        positives = [j for j in others if products[j] == products[i]]
        if positives:
            whole = math.log(sum(math.exp(float(vectors[i] @ vectors[j]) / 0.1) for j in others))
            expected.append(-sum(float(vectors[i] @ vectors[j]) / 0.1 - whole for j in positives) / len(positives))
    assert float(pair_loss(vectors, products, 0.1)) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_a_batch_without_positives_costs_nothing_and_still_has_a_gradient() -> None:
    vectors = unit(3).requires_grad_()
    loss = pair_loss(vectors, torch.arange(3), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert vectors.grad is not None


def test_the_gradient_stays_finite_when_all_vectors_are_equal() -> None:
    vectors = unit(1).repeat(4, 1).requires_grad_()
    pair_loss(vectors, torch.tensor([0, 0, 1, 1]), 0.05).backward()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


def test_the_text_loss_is_least_where_each_picture_meets_its_own_title() -> None:
    texts = torch.eye(3, 8)
    products = torch.tensor([0, 0, 1, 2])
    right, wrong = texts[products], texts[(products + 1) % 3]
    scale = torch.tensor(20.0)
    assert float(text_loss(right, texts, products, torch.arange(3), scale)) < 0.4
    assert float(text_loss(wrong, texts, products, torch.arange(3), scale)) > 10


def test_imitating_exactly_costs_nothing() -> None:
    teacher = unit(5)
    assert float(imitation_loss(teacher, teacher, teacher, 0.1)) == pytest.approx(0.0, abs=1e-6)
    assert float(cosine_loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    assert float(imitation_loss(unit(5, seed=1), teacher, teacher, 0.1)) > 0.1
    assert float(cosine_loss(-teacher, teacher)) == pytest.approx(2.0, abs=1e-6)


def test_searching_costs_little_where_each_query_lies_on_its_own_document() -> None:
    documents = torch.eye(4, 8)
    places = torch.tensor([2, 0, -1])
    assert float(search_loss(documents[[2, 0, 1]], documents, places, 0.1)) < 0.01
    assert float(search_loss(documents[[1, 3, 1]], documents, places, 0.1)) > 5
    assert float(search_loss(documents[:1], documents, torch.tensor([-1]), 0.1)) == 0.0
