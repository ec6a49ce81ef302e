"""Records of the pipelines that make index versions: rebuild_index and refresh_index."""

from dataclasses import dataclass
from typing import Any

from tasks.embed.job import EmbedResult
from tasks.records import Record


@dataclass(frozen=True)
class DataDocs(Record):
    """Great Expectations suites that passed: expectations checked by suite, links to the pages, and the run's note ("" for none)."""

    checked: dict[str, int]
    links: dict[str, str]
    note: str = ""


@dataclass(frozen=True)
class RegisteredVersion(Record):
    """An index version in the registry, and whether it passed its gates; `summary` says so in one sentence.

    `compaction_due`: why the version asks for a rebuild, "" when it does not.
    """

    version: str
    passed: bool
    summary: str
    compaction_due: str = ""


@dataclass(frozen=True)
class RefreshPlan(Record):
    """The changes of one refresh; also the content of `_plan.json` below `uri`, where the changed rows and message handles lie.

    `due`: there is something to do. `parent` is the version that they are built on, `ranker` the weights and rules of the new
    one, `carried` the versions whose changes are carried over. Counts: `changes` = `upserts` + `deletes`; `waiting` for the next
    refresh; `contained` in the parent already; `received` and `dead_letters` of the messages. `now` (ISO 8601) is when the plan
    was made, `note` what a person should know of ("" for nothing).
    """

    due: bool
    run_key: str
    uri: str
    parent: str
    ranker: dict[str, Any]
    carried: list[str]
    changes: int
    upserts: int
    deletes: int
    waiting: int
    contained: int
    received: int
    dead_letters: int
    note: str
    now: str
    summary: str


@dataclass(frozen=True)
class EmbeddedChanges(Record):
    """The embedded upserts of a plan; `result` is None when it has none.

    `snapshot_uri` holds their rows, `pace` is the throughput in pictures a second (0: too few to tell), `note` names the
    products in quarantine ("" for none).
    """

    result: EmbedResult | None = None
    snapshot_uri: str = ""
    pace: float = 0.0
    note: str = ""

    @property
    def quarantined(self) -> int:
        return self.result.quarantined if self.result else 0


@dataclass(frozen=True)
class Acknowledgement(Record):
    """Messages acknowledged and those still waiting, and what of the changes could not be used; `summary` says it in one sentence."""

    acknowledged: int
    waiting: int
    dead_letters: int
    quarantined: int
    summary: str


@dataclass(frozen=True)
class LoadedFeatures(Record):
    """Number of products whose features were written to the feature store."""

    products: int
    summary: str = ""
