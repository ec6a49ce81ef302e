"""Steps of a promotion by themselves, over a real MLflow."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tasks.pipelines import promote_index, promotion_bake, register_index
from tasks.registry import INDEX_MODEL, Registry
from tasks.release.promotion.proposal import SUPERSEDED
from tasks.release.promotion.serving_replicas import Replica
from tests.registered import Shop

pytestmark = pytest.mark.slow


@pytest.fixture
def shop(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop whose settings this process has; no replica serves it."""
    for name, value in {"HOME": str(tmp_path), "MLFLOW_URI": mlflow_uri, "SERVING_URLS": ""}.items():
        monkeypatch.setenv(f"VITRINE_{name}", value)
    return Shop(tmp_path, Registry(mlflow_uri, tmp_path / "cache"))


def test_promoting_what_is_live_already_leaves_no_lease(shop: Shop) -> None:
    """Nothing follows such a promotion that would release it, and whoever promotes next would wait until it runs out."""
    version = shop.version()
    shop.point(blue=version, live=version)
    shop.registry.tag_version(INDEX_MODEL, version, promotion_bake.BAKE, f"{promotion_bake.KEPT}: a test")
    plan = promote_index.choose(version, "by hand")
    assert plan.done
    assert "is live already" in plan.summary
    assert not [tag for tag in shop.registry.model_tags(INDEX_MODEL) if tag.startswith("lease.")]


def test_the_newest_candidate_is_proposed_and_those_before_it_are_superseded(shop: Shop) -> None:
    """Whatever event started the run: the registry says what is proposed."""
    live, *waiting = [shop.version() for _ in range(4)]
    shop.point(blue=live, live=live, candidate=live)
    for version in waiting:
        register_index.publish(version)
    register_index.publish(waiting[-1])
    tags = [shop.registry.version(INDEX_MODEL, v).tags.get(SUPERSEDED, "") for v in (live, *waiting)]
    first, second, newest = waiting
    assert tags == ["", f"by version {second}, before it was live", f"by version {newest}, before it was live", ""]
    assert promote_index.replaced_while_waiting(first) == (
        f"version {first} was superseded by version {newest} before anybody answered; that one is proposed next"
    )
    assert promote_index.replaced_while_waiting(newest) == ""
    plan = promote_index.choose("", "the next run")
    promote_index.release_lease("the next run")
    assert (plan.version, plan.done) == (newest, False)


def test_a_superseded_version_that_a_person_puts_live_is_marked_no_longer(shop: Shop) -> None:
    live, chosen, newer = (shop.version() for _ in range(3))
    shop.point(blue=live, live=live)
    for version in (chosen, newer):
        register_index.publish(version)
    plan = promote_index.choose(chosen, "a person")
    promote_index.flip(plan, "a person")
    promote_index.settle("a person")
    tags = shop.registry.version(INDEX_MODEL, chosen).tags
    assert SUPERSEDED not in tags
    assert float(tags["live_at"]) > 0


class Counting(Replica):
    """A replica that follows the aliases at once, and whose searches are one more at each look."""

    def __init__(self, registry: Registry) -> None:
        super().__init__("http://a")  # the dataclass is frozen
        object.__setattr__(self, "of", (registry, []))

    def poll_aliases(self, again: str = "") -> None:
        """It follows by itself."""

    def version(self) -> dict[str, Any]:
        registry, _ = self.of  # type: ignore[attr-defined]
        held = registry.aliases(INDEX_MODEL)
        slots = {slot: {"version": held.get(slot, ""), "state": "ready", "reason": ""} for slot in ("blue", "green")}
        return {"live": {"version": held["live"]}, "slots": slots}

    def metrics(self) -> str:
        _, looks = self.of  # type: ignore[attr-defined]
        looks.append(1)
        return f'vitrine_requests_total{{route="/v1/search",status="200"}} {len(looks)}\n'


@pytest.mark.parametrize("rolled_back", [False, True])
def test_a_flip_that_is_tried_again_keeps_what_was_read_before_the_first_attempt(
    rolled_back: bool, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads after the move is no "before"; where somebody moved `live` since, it is unknown and said to be."""
    live, version = shop.version(), shop.version()
    shop.point(blue=live, live=live)
    replica = Counting(shop.registry)
    monkeypatch.setattr(promote_index, "replicas_of", lambda chosen: [replica])
    plan = promote_index.choose(version, "a run")
    move = Registry.set_alias

    def killed(self: Registry, model: str, alias: str, to: str) -> None:
        move(self, model, alias, to)
        if alias == "live":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "set_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            promote_index.flip(plan, "a run")
    if rolled_back:
        promote_index.release_lease("a run")
        epoch = "of the rollback"
        shop.registry.set_model_tag(INDEX_MODEL, "lease-epoch", epoch)
        plan = dataclasses.replace(plan, epoch=epoch)
    flipped = promote_index.flip(plan, "a run")
    promote_index.settle("a run")
    if rolled_back:
        assert flipped.before == []
        assert flipped.summary.endswith("metrics of before the flip are unknown, so its bake counts from its own start")
    else:
        assert [(r.url, r.searches) for r in flipped.before] == [("http://a", 1.0)]
        assert "unknown" not in flipped.summary
