"""OpenAPI schemas of a replica's state and samples; the answers themselves are built by their owners."""

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from serving.contract.box import Box
from serving.contract.manifest import Gate
from serving.contract.provenance import QuerySet

GREEN: JsonDict = {
    "version": "8",
    "state": "failed",
    "reason": "files/5d0c…: corrupt",
    "since": "2026-11-24T02:31:07+00:00",
    "products": 0,
    "retry_s": 52,
    "failures": 2,
}
BLUE: JsonDict = {
    "version": "7",
    "state": "ready",
    "reason": "",
    "since": "2026-11-23T02:30:12+00:00",
    "products": 1_000_000,
    "retry_s": None,
    "failures": 0,
}
NOW: JsonDict = {"live": {"version": "7", "slot": "blue"}, "slots": {"blue": BLUE, "green": GREEN}, "error": "", "flips": 3}


class SlotState(BaseModel):
    """What a slot holds."""

    version: str = Field(description="the index version; empty: none")
    state: str = Field(description="empty, loading, ready or failed")
    reason: str = Field(description="why it failed, or what it waits for")
    since: str = Field(description="when it began to hold this version")
    products: int
    retry_s: int | None = Field(description="in how many seconds a failed version is loaded again; null: it did not fail")
    failures: int = Field(description="how often this version failed here; each doubles the pause, up to ten minutes")


class Live(BaseModel):
    """Which version answers."""

    version: str
    slot: str


class LiveVersion(Live):
    """The version that answers, and what it was made of."""

    manifest: str
    created_at: str
    encoder: str
    words: bool = Field(description="whether it can be asked with words")
    query: str = Field(description="tower and variant of the encoder that encodes queries")
    snapshot: str
    products: int
    queries: QuerySet | None = Field(description="what its recall was measured on; null: not stated")
    gates: list[Gate]


class SlotsBase(BaseModel):
    """The state of the slots."""

    slots: dict[str, SlotState]
    error: str = Field(description="why the registry cannot be followed, or a flip waits")
    flips: int = Field(description="times another version went live since the start")


class SlotsState(SlotsBase):
    """What each slot holds, and what answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [NOW]})

    live: Live | None


class ShardProcess(BaseModel):
    """A shard process, as a gateway sees it."""

    address: str
    up: bool
    reason: str
    shards: list[int]
    versions: dict[str, str]


class ReplicaState(SlotsBase):
    """What each slot holds, the live version in full, and what the process is."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                NOW
                | {
                    "live": {
                        "version": "7", "slot": "blue", "manifest": "scheduled__2026-11-23", "created_at": "2026-11-23T02:11:40+00:00",
                        "encoder": "3", "words": True, "query": "student.int8", "snapshot": "scheduled__2026-11-23", "products": 1_000_000,
                        "queries": {"kind": "photos", "photos": 296, "synthetic": 0},
                        "gates": [{"name": "recall@10", "value": 0.982, "threshold": 0.95, "passed": True, "reason": "…"}],
                    },
                    "role": "all",
                    "notice": "",
                }
            ]
        }
    )  # fmt: skip

    live: LiveVersion | None
    role: str
    notice: str = Field(default="", description="a line for the search page")
    shards: list[ShardProcess] | list[int] = Field(
        default=[], description="a gateway's shard processes; a shard process's shards"
    )
    shard_map_error: str = Field(default="", description="why a gateway cannot read where its shards are")


class KeptSample(BaseModel):
    """A real query that was kept."""

    at: str = Field(description="when it was asked, ISO 8601")
    kind: str = Field(description="photo, text, mixed, product or vector")
    fingerprint: str = Field(description="of the query encoder")
    photo_sha256: str
    vector: str = Field(description="base64 of little-endian float32")
    box: Box | None = Field(default=None, description="the part of the photo that was searched for; null: the whole photo")
    photo: str | None = Field(description="base64, where a setting keeps photos")


class KeptSamples(BaseModel):
    """The newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "samples": [
                        {
                            "at": "2026-11-24T02:31:07+00:00", "kind": "photo", "fingerprint": "5f1c…", "photo_sha256": "9a0e…",
                            "vector": "vQuAPQ…", "box": None, "photo": None,
                        }
                    ]
                }
            ]
        }
    )  # fmt: skip

    samples: list[KeptSample]
