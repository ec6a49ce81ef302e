"""Records of train_encoder. The record of a trained tower is in tasks/encoder/train/tower_record.py."""

from dataclasses import dataclass, field
from typing import Any

from serving.contract.manifest import Gate
from tasks.records import Record


@dataclass(frozen=True)
class TrainingPlan(Record):
    """What is trained: `config` is an EncoderConfig as a dict, `recipe` the hash of it and the data.

    `existing` is the version of the same recipe ("" for none), `forced` the key of a run that trains although there is one.
    """

    preset: str
    recipe: str
    config: dict[str, Any]
    existing: str = ""
    forced: str = ""


@dataclass(frozen=True)
class ChampionDecision(Record):
    """The decision on an encoder version `against` the champion ("" for none): whether to promote it, and the gates it failed."""

    version: str
    promote: bool
    against: str
    summary: str
    failed: list[Gate] = field(default_factory=list)


@dataclass(frozen=True)
class ChampionPromotion(Record):
    """Whether the version became champion; `summary` says why not."""

    promoted: bool
    version: str
    summary: str
