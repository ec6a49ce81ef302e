"""The version info in every answer, and the base of the API's models."""

from pydantic import BaseModel, ConfigDict


class ApiModel(BaseModel):
    """Base of API models: immutable, unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VersionInfo(ApiModel):
    """The versions that produced an answer."""

    index: str
    encoder: str
    tower: str
    variant: str
    manifest: str
