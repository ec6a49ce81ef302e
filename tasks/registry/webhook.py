"""MLflow's signed webhook for moved aliases: registration, and verification of incoming requests."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.contract.addresses import error_line, without_secrets
from serving.contract.webhook_signature import InvalidSignature, verify_signature
from tasks.errors import VitrineError
from tasks.registry import ENCODER_MODEL, Registry, unreachable

EVENT = "model_version_alias.created"


@dataclass(frozen=True)
class Receiver:
    """A webhook receiver: its name in MLflow, the path below its address, and a description."""

    name: str
    path: str
    about: str


AIRFLOW = Receiver(
    "vitrine-champion",
    "/vitrine-hook/champion",
    "Tells Airflow that an encoder became champion, so that every product is embedded again.",
)
REPLICA = Receiver("vitrine-replica", "/v1/hooks/mlflow", "Tells a replica that an alias moved, so that it looks at once.")


class InvalidWebhook(VitrineError):
    """The request has no valid signature, or a stale one."""


@dataclass(frozen=True)
class AliasMoved:
    """The event: `alias` of `model` now names `version`."""

    model: str
    alias: str
    version: str

    @property
    def is_champion(self) -> bool:
        return (self.model, self.alias) == (ENCODER_MODEL, "champion")


def verify(headers: Mapping[str, str], body: bytes, secret: str, now_s: float) -> AliasMoved | None:
    """Verifies a signed request and returns its event; None for other events. `now_s` is epoch seconds.

    Raises InvalidWebhook when the signature is missing or wrong (compared in constant time) or outside of the window, and when no
    secret is set.
    """
    if not secret:
        raise InvalidWebhook(
            "no secret is set for MLflow's messages: set VITRINE_WEBHOOK_SECRET for Airflow and run: vitrine webhook"
        )
    try:
        verify_signature(headers, body, secret, now_s)
    except InvalidSignature as error:
        raise InvalidWebhook(str(error)) from None
    try:
        said = json.loads(body)
        if f"{said['entity']}.{said['action']}" != EVENT:
            return None
        data = said["data"]
        return AliasMoved(str(data["name"]), str(data["alias"]), str(data["version"]))
    except (ValueError, KeyError, TypeError):
        raise InvalidWebhook("the message is signed, but it is not one of MLflow's about an alias") from None


def register_webhook(registry: Registry, address: str, secret: str, receiver: Receiver = AIRFLOW) -> bool:
    """Registers a receiver with MLflow. False when it existed; the secret is always updated.

    Airflow is one; of replicas there may be several, each known to MLflow by its address. MLflow remembers its list of webhooks for
    MLFLOW_WEBHOOK_CACHE_TTL seconds (60 by default): a move within that time of registering is seen by polling only. Raises
    VitrineError when MLflow does not allow the address.
    """
    from mlflow.exceptions import MlflowException

    url = address.rstrip("/") + receiver.path
    name = receiver.name if receiver is AIRFLOW else f"{receiver.name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    client: Any = registry.client
    wanted: dict[str, Any] = {"url": url, "events": [EVENT], "secret": secret, "status": "ACTIVE"}
    try:
        known = [w for w in client.list_webhooks(max_results=100) if w.name == name]
        if known:
            client.update_webhook(known[0].webhook_id, **wanted)
            for double in known[1:]:
                client.delete_webhook(double.webhook_id)
            return bool(known[0].url != url)
        client.create_webhook(name, description=receiver.about, **wanted)
        return True
    except MlflowException as error:
        if unreachable(error):
            raise
        raise VitrineError(
            f"MLflow at {without_secrets(registry.uri)} does not take the webhook {without_secrets(url)}: {error_line(error)}; "
            "for an address that is not public https, start its server with MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https and "
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true"
        ) from None
