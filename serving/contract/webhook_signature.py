"""Verifies the signatures of MLflow's webhooks.

MLflow's scheme (mlflow/webhooks/delivery.py): HMAC-SHA256 over "<delivery id>.<timestamp>.<body>", base64, with the prefix "v1,".
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping

WINDOW_S = 300
"""Largest difference between signing time and now: an older message may be a replay."""
MAX_BODY_BYTES = 64 * 1024
"""Most bytes of a webhook body; MLflow's about an alias have a few hundred."""


class InvalidSignature(Exception):
    """The signature is missing, wrong or too old."""


def verify_signature(headers: Mapping[str, str], body: bytes, secret: str, now_s: float) -> None:
    """Raises InvalidSignature unless the signature matches (constant time) and was made within WINDOW_S of `now_s` (epoch)."""
    if not secret:
        raise InvalidSignature("no secret is set for MLflow's messages")
    delivery, sent = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    if not hmac.compare_digest(signature(secret, delivery, sent, body).encode(), headers.get("x-mlflow-signature", "").encode()):
        raise InvalidSignature("the message is not signed with our secret")
    if not sent.isdecimal() or abs(now_s - int(sent)) > WINDOW_S:
        raise InvalidSignature(f"the message was signed at {sent or 'no time'}, which is more than {WINDOW_S} s from now")


def signature(secret: str, delivery: str, sent: str, body: bytes) -> str:
    """The signature MLflow makes of a body."""
    signed = hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()
