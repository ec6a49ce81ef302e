"""What a version was made from and with: the optional records of format 2 of the manifests.

Whoever has something to say fills its record; a reader takes an absent one as "not stated", as in format 1.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from serving.contract.files import FrozenModel

MAX_COUNT = 2**53
"""Greatest count in a manifest: what every JSON reader takes as an exact integer."""
SHA256 = r"^[0-9a-f]{64}$"

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Training = Literal["none", "fine-tuned", "interpolated"]


def optional(default: Any = None) -> Any:
    """A field of format 2: left out of the JSON where it has its default, so that a format 1 manifest is written as it was read."""
    return Field(default=default, exclude_if=lambda value: value == default)


class EmbeddingCommit(FrozenModel):
    """The vectors that one run committed, by name: where they are, and what proves that they are those.

    `uri` is the run's folder of vectors by shard, `sha256` that of the `_manifest.json` in it, `store` the folder of the encoder's
    embedding store that they were gathered from. `embedded` and `quarantined` count products, `fingerprint` is the document
    encoder's.
    """

    uri: str = Field(min_length=1)
    store: str = Field(min_length=1)
    sha256: str = Field(pattern=SHA256)
    fingerprint: str = Field(min_length=1)
    embedded: Count
    quarantined: Count


class QuerySet(FrozenModel):
    """The queries that recall was measured on: shoppers' photos, synthetic ones, or both."""

    kind: Literal["photos", "synthetic", "mixed"]
    photos: Count = 0
    synthetic: Count = 0

    @model_validator(mode="after")
    def _kind_is_that_of_the_counts(self) -> Self:
        if self.kind != (found := query_kind(self.photos, self.synthetic)):
            raise ValueError(
                f"the queries are called {self.kind!r}, and {self.photos} photos and {self.synthetic} synthetic ones are {found!r}"
            )
        return self

    @classmethod
    def of(cls, photos: int, synthetic: int = 0) -> "QuerySet | None":
        """The record of so many queries; None for none at all."""
        return cls(kind=query_kind(photos, synthetic), photos=photos, synthetic=synthetic) if photos or synthetic else None


def query_kind(photos: int, synthetic: int) -> Any:
    """What a set of so many queries is called; no query at all are no "photos"."""
    if photos and synthetic:
        return "mixed"
    return "photos" if photos else "synthetic" if synthetic else "nothing"


class EngineRef(FrozenModel):
    """A collection of another engine that holds the base rows; absent where these are FAISS files.

    `digest` is the sha256 over what was uploaded.
    """

    name: str = Field(min_length=1)
    collection: str = Field(min_length=1)
    rows: Count
    digest: str = Field(pattern=SHA256)


class Origin(FrozenModel):
    """Where an encoder's pretrained weights come from: a published name, its tag or the file's sha256, and the licence."""

    name: str = Field(min_length=1)
    tag: str = ""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    licence: str = Field(min_length=1)

    @model_validator(mode="after")
    def _weights_are_named(self) -> Self:
        if not self.tag and not self.sha256:
            raise ValueError(
                f"the weights of {self.name!r} have neither a tag nor a sha256; one of them says which weights they are"
            )
        return self
