"""MLflow's signed message: what is believed, what is refused, and that our signature is MLflow's own."""

import json

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from serving.contract.webhook_signature import WINDOW_S, signature
from tasks.registry.webhook import AliasMoved, InvalidWebhook, verify

NOW = 1_800_000_000
SECRET = "a secret of the tests"


def message(name: str = "product-encoder", alias: str = "champion", entity: str = "model_version_alias") -> bytes:
    data = {"name": name, "alias": alias, "version": "7"}
    return json.dumps({"entity": entity, "action": "created", "timestamp": "2026", "data": data}).encode()


def signed(body: bytes, sent: int = NOW, secret: str = SECRET, delivery: str = "one") -> dict[str, str]:
    mark = signature(secret, delivery, str(sent), body)
    return {"x-mlflow-delivery-id": delivery, "x-mlflow-timestamp": str(sent), "x-mlflow-signature": mark}


def test_the_signature_is_the_one_mlflow_makes() -> None:
    body = message()
    assert signature(SECRET, "one", str(NOW), body) == _generate_hmac_signature(SECRET, "one", str(NOW), body.decode())


def test_a_signed_message_in_its_window_is_believed() -> None:
    body = message()
    for sent in (NOW, NOW - WINDOW_S, NOW + WINDOW_S):
        assert verify(signed(body, sent), body, SECRET, NOW) == AliasMoved("product-encoder", "champion", "7")


def test_messages_about_something_else_are_not_about_the_champion() -> None:
    other = message(entity="model_version_tag")
    assert verify(signed(other), other, SECRET, NOW) is None
    for body in (message(name="product-index"), message(alias="challenger")):
        moved = verify(signed(body), body, SECRET, NOW)
        assert moved is not None
        assert not moved.is_champion


@pytest.mark.parametrize(
    ("headers", "body", "why"),
    [
        ({}, message(), "not signed with our secret"),
        (signed(message(), secret="another"), message(), "not signed with our secret"),
        (signed(message()), message(alias="challenger"), "not signed with our secret"),
        (signed(message()) | {"x-mlflow-delivery-id": "two"}, message(), "not signed with our secret"),
        (signed(message()) | {"x-mlflow-timestamp": str(NOW + 1)}, message(), "not signed with our secret"),
        (signed(message(), NOW - WINDOW_S - 1), message(), "more than 300 s from now"),
        (signed(message(), NOW + WINDOW_S + 1), message(), "more than 300 s from now"),
        (signed(b"[1]"), b"[1]", "not one of MLflow's"),
        (signed(b"\xff"), b"\xff", "not one of MLflow's"),
    ],
)
def test_what_is_not_signed_or_old_or_changed_is_refused(headers: dict[str, str], body: bytes, why: str) -> None:
    with pytest.raises(InvalidWebhook, match=why):
        verify(headers, body, SECRET, NOW)


def test_without_a_secret_nothing_is_believed() -> None:
    body = message()
    with pytest.raises(InvalidWebhook, match="VITRINE_WEBHOOK_SECRET"):
        verify(signed(body, secret=""), body, "", NOW)
