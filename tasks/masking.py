"""Settings and texts as they may be shown: without the secrets of the settings."""

from dataclasses import fields
from typing import Any

from serving.contract.addresses import MASK, hide_secrets, secret_texts, without_secrets
from tasks.settings import Settings


def mask(name: str, value: Any, of: type[Any] = Settings) -> str:
    """A setting's value for display: secrets, and what addresses hold of them, are masked. `of` is the class that has the setting."""
    spec = next(f for f in fields(of) if f.name == name)
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    if spec.metadata.get("secret") and text:
        return MASK
    return without_secrets(text)


def secret_values(settings: Settings) -> set[str]:
    """The texts that must never be shown: the values of secret settings, and the passwords and tokens in addresses."""
    found: set[str] = set()
    for spec in fields(Settings):
        value = getattr(settings, spec.name)
        for text in value if isinstance(value, tuple) else (str(value),):
            found |= {*secret_texts(text), *([text] if spec.metadata.get("secret") else [])}
    return {text for text in found if len(text) > 2}


def public_text(text: str, settings: Settings) -> str:
    """A text such as an error, safe to be shown: secrets of the settings, and of addresses in the text, are masked."""
    for secret in sorted(secret_values(settings), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return hide_secrets(text)
