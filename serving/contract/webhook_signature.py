"""MLflow's signed messages: whether one is MLflow's own and new.

The scheme is MLflow's (mlflow/webhooks/delivery.py): HMAC-SHA256 over "<delivery id>.<timestamp>.<body>", base64, "v1," in front.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping

WINDOW_S = 300
"""A message signed longer ago than this, or as far in the future, is refused: it may have been kept and sent again."""
MAX_BODY_BYTES = 64 * 1024
"""Bytes of a message; MLflow's about an alias have a few hundred."""


class InvalidSignature(Exception):
    """The message does not carry a signature of ours, or an old one."""


def verify_signature(headers: Mapping[str, str], body: bytes, secret: str, now_s: float) -> None:
    """Raises NotSigned unless the signature is right (compared in constant time) and made within the window around `now_s` (epoch)."""
    if not secret:
        raise InvalidSignature("no secret is set for MLflow's messages")
    delivery, sent = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    if not hmac.compare_digest(signature(secret, delivery, sent, body).encode(), headers.get("x-mlflow-signature", "").encode()):
        raise InvalidSignature("the message is not signed with our secret")
    if not sent.isdecimal() or abs(now_s - int(sent)) > WINDOW_S:
        raise InvalidSignature(f"the message was signed at {sent or 'no time'}, which is more than {WINDOW_S} s from now")


def signature(secret: str, delivery: str, sent: str, body: bytes) -> str:
    """MLflow's signature of a body."""
    signed = hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()
