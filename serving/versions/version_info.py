"""Which version answered: part of every answer."""

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """Base of everything that travels: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VersionInfo(Wire):
    """What answered."""

    index: str
    encoder: str
    tower: str
    variant: str
    manifest: str
