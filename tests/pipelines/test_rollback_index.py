"""The rollback as a step: what a replica that does not follow leaves undone is its own part alone."""

from dataclasses import dataclass, field

import httpx
import pytest

from tasks.errors import ServiceAway
from tasks.pipelines import rollback_index
from tasks.release.promotion import blue_green
from tasks.settings import Settings
from tests.pipelines.test_promotion_bake import Registry
from tests.release.promotion.test_blue_green import Following, promote


@dataclass
class Leasing(Registry):
    """Aliases, and the tags of the registered model that a lease lies in."""

    model: dict[str, str] = field(default_factory=dict)

    def model_tags(self, model: str) -> dict[str, str]:
        return dict(self.model)

    def set_model_tag(self, model: str, tag: str, value: str) -> None:
        self.model[tag] = value

    def delete_model_tag(self, model: str, tag: str) -> None:
        self.model.pop(tag, None)


class Dead(Following):
    def version(self) -> dict:
        raise httpx.ConnectError("refused")


def test_a_rollback_that_a_dead_replica_does_not_follow_is_whole_but_for_that_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, brought = Leasing(), []
    for version in ("1", "2"):
        promote(registry, [Following(registry)], version)
    monkeypatch.setattr(blue_green, "SILENT_S", 0.0)
    monkeypatch.setattr(rollback_index, "settings", Settings)
    monkeypatch.setattr(rollback_index, "registry", lambda chosen: registry)
    monkeypatch.setattr(rollback_index, "replicas_of", lambda chosen: [Following(registry), Dead(registry, "http://dead")])
    monkeypatch.setattr(rollback_index, "_bring_along", lambda models, chosen: brought.append(models.held["live"]) or "")
    with pytest.raises(ServiceAway, match="version 1 is live: 1 of 2 replicas did not follow within 0 s: http://dead"):
        rollback_index.roll_back("a person")
    assert registry.held["live"] == "1"
    assert brought == ["1"], "the engine's alias and the features"
    assert not [tag for tag in registry.model if tag.startswith("lease.")], "nobody waits for its lease"
