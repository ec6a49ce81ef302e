"""Records of promote_index and rollback_index."""

from dataclasses import dataclass, field

from tasks.records import Record
from tasks.release.promotion.bake import Reading
from tasks.release.promotion.blue_green import Plan


@dataclass(frozen=True)
class PromotionPlan(Record):
    """A version and the slot it goes to, under the lease's `epoch`; `done`: it is live and was kept already.

    `live` and `live_slot` name what is served now, `held` what the slot holds ("" for nothing).
    """

    version: str
    slot: str
    live: str
    live_slot: str
    held: str
    epoch: str
    done: bool
    summary: str
    links: dict[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> Plan:
        return Plan(self.version, self.slot, self.live, self.live_slot, self.held)


@dataclass(frozen=True)
class WarmedSlot(Record):
    """All replicas hold the version after so many seconds."""

    seconds: float
    replicas: int
    summary: str


@dataclass(frozen=True)
class BeforeFlip(Record):
    """Each replica's metrics of the moment before `live` moved, of a promotion planned under the lease's `epoch`."""

    epoch: str
    readings: list[Reading]


@dataclass(frozen=True)
class Flip(Record):
    """The version is live; `before` holds each replica's metrics of the moment before, which the bake compares with.

    It is empty where they are unknown, since an earlier attempt moved `live` and kept none.
    """

    version: str
    slot: str
    seconds: float
    summary: str
    before: list[Reading]
    links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bake(Record):
    """The version was kept; `summary` states the metrics of the bake."""

    version: str
    summary: str
    links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cleanup(Record):
    """What was put in order after a promotion, "" for nothing."""

    summary: str


@dataclass(frozen=True)
class Rollback(Record):
    """The version is live again on every replica; `before` is the one that was."""

    version: str
    before: str
    seconds: float
    summary: str
    links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Promotion(Record):
    """The outcome of a whole promotion; `seconds` is how long the flip took (0: the version was live already)."""

    version: str
    seconds: float
    summary: str
