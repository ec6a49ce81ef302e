"""MLflow's signed message that an alias moved: registering it with MLflow, and believing one that arrives.

The scheme is MLflow's (mlflow/webhooks/delivery.py): HMAC-SHA256 over "<delivery id>.<timestamp>.<body>", base64, "v1," in front.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.errors import VitrineError
from tasks.registry import ENCODER_MODEL, Registry

NAME = "vitrine-champion"
EVENT = "model_version_alias.created"
PATH = "/vitrine-hook/champion"
WINDOW_S = 300
"""A message signed longer ago than this, or as far in the future, is refused: it may have been kept and sent again."""


class NotBelieved(VitrineError):
    """The message does not carry a signature of ours, or an old one."""


@dataclass(frozen=True)
class AliasMoved:
    """What MLflow says: `alias` of `model` names `version` now."""

    model: str
    alias: str
    version: str

    @property
    def is_champion(self) -> bool:
        return (self.model, self.alias) == (ENCODER_MODEL, "champion")


def believe(headers: Mapping[str, str], body: bytes, secret: str, now_s: float) -> AliasMoved | None:
    """The message of a signed request; None when it is about something else. `now_s` is epoch seconds.

    Raises NotBelieved when the signature is missing or wrong (compared in constant time) or outside of the window, and when no
    secret is set.
    """
    if not secret:
        raise NotBelieved(
            "no secret is set for MLflow's messages: set VITRINE_WEBHOOK_SECRET for Airflow and run: vitrine webhook"
        )
    delivery, sent = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    if not hmac.compare_digest(signature(secret, delivery, sent, body).encode(), headers.get("x-mlflow-signature", "").encode()):
        raise NotBelieved("the message is not signed with our secret")
    if not sent.isdecimal() or abs(now_s - int(sent)) > WINDOW_S:
        raise NotBelieved(f"the message was signed at {sent or 'no time'}, which is more than {WINDOW_S} s from now")
    try:
        said = json.loads(body)
        if f"{said['entity']}.{said['action']}" != EVENT:
            return None
        data = said["data"]
        return AliasMoved(str(data["name"]), str(data["alias"]), str(data["version"]))
    except (ValueError, KeyError, TypeError):
        raise NotBelieved("the message is signed, but it is not one of MLflow's about an alias") from None


def signature(secret: str, delivery: str, sent: str, body: bytes) -> str:
    """MLflow's signature of a body."""
    signed = hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()


def register_webhook(registry: Registry, airflow: str, secret: str) -> bool:
    """Has MLflow tell Airflow (at this address) about moved aliases. False when it was so already; the secret is always set anew.

    Raises VitrineError when MLflow does not allow the address.
    """
    from mlflow.exceptions import MlflowException

    url = airflow.rstrip("/") + PATH
    client: Any = registry.client
    wanted: dict[str, Any] = {"url": url, "events": [EVENT], "secret": secret, "status": "ACTIVE"}
    about = "Tells Airflow that an encoder became champion, so that every product is embedded again."
    try:
        known = [w for w in client.list_webhooks(max_results=100) if w.name == NAME]
        if known:
            client.update_webhook(known[0].webhook_id, **wanted)
            for double in known[1:]:
                client.delete_webhook(double.webhook_id)
            return bool(known[0].url != url)
        client.create_webhook(NAME, description=about, **wanted)
        return True
    except MlflowException as error:
        raise VitrineError(
            f"MLflow at {registry.uri} does not take the webhook {url}: {str(error).splitlines()[0]}; for an address that is not "
            "public https, start its server with MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true"
        ) from None
