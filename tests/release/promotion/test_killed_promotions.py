"""Promotions as real processes over a real MLflow and two real replicas, killed with SIGKILL at their writes, under queries.

`make test` kills at the writes that change what a promotion is; `make kill-drill` before and after every single write, those of
the lease too.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path

import httpx
import pytest

from tasks.demo.services import process_environment
from tasks.registry import INDEX_MODEL, Registry
from tasks.settings import Settings
from tests.registered import TOKEN, Running, Shop, replicas
from tests.release.promotion import promoter
from tests.running import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

POINTS = ("alias blue or green", "tag replaced", "alias live")
WRITES_OF_A_PROMOTION = 35
EVERY = [
    pytest.param(f"{when} {n}", marks=pytest.mark.kill_drill)
    for n in range(1, WRITES_OF_A_PROMOTION + 1)
    for when in ("before", "after")
]


@dataclass
class Shoppers:
    """Ask both replicas all the time; every answer must be whole and of a version that was promoted."""

    urls: list[str]
    photo: bytes
    failed: list[str] = field(default_factory=list)
    asked: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=90) as client:
            while not self.stop.is_set():
                for url in self.urls:
                    answer = client.post(f"{url}/v1/search", files={"image": self.photo}, data={"k": "3"})
                    self.asked += 1
                    if answer.status_code != 200 or answer.json()["results"][0]["product_id"] != "p007":
                        self.failed.append(answer.text[:300])
                self.stop.wait(0.2)


@dataclass
class Stack:
    """Three versions that passed their gates, two replicas that serve the first, and shoppers."""

    registry: Registry
    versions: list[str]
    running: list[Running]
    environ: dict[str, str]
    processes: ForkServerContext
    shoppers: Shoppers
    runs: int = 0

    def act(self, action: str, version: str, kill_at: str = "") -> int:
        """Runs a promotion or a rollback as a process of its own; gives its exit code."""
        self.runs += 1
        process = self.processes.Process(
            target=promoter.run, args=(self.environ, action, version, f"process {self.runs}", kill_at)
        )
        process.start()
        process.join(120)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode

    def aliases(self) -> dict[str, str]:
        return self.registry.aliases(INDEX_MODEL)

    def serving(self) -> set[str]:
        return {httpx.get(f"{r.url}/v1/version", timeout=60, trust_env=False).json()["live"]["version"] for r in self.running}

    def loaded(self, version: str) -> list[str]:
        """Since when each replica holds a version ready."""
        states = [httpx.get(f"{r.url}/v1/version", timeout=60, trust_env=False).json()["slots"] for r in self.running]
        return [s["since"] for state in states for s in state.values() if (s["version"], s["state"]) == (version, "ready")]

    def other(self) -> str:
        """A version that neither slot holds."""
        held = self.aliases()
        return next(v for v in self.versions if v not in (held["blue"], held.get("green", "")))

    def in_order(self, live: str, previous: str) -> None:
        """`live` serves on both replicas, the other slot holds `previous`."""
        held = self.aliases()
        assert (held["live"], held["previous"]) == (live, previous)
        assert {held["blue"], held["green"]} == {live, previous}
        assert self.serving() == {live}


@pytest.fixture(scope="module")
def stack(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("killed")
    registry = Registry(mlflow_uri, home / "cache")
    shop = Shop(home, registry)
    versions = [shop.version() for _ in range(3)]
    shop.point(blue=versions[0], live=versions[0])
    with replicas(mlflow_uri, home, 2) as running:
        settings = Settings(
            home=home, mlflow_uri=mlflow_uri, serving_urls=tuple(r.url for r in running), admin_token=TOKEN, bake_s=0.5
        )
        shoppers = Shoppers([r.url for r in running], (home / "shop" / "photos" / "7-2.jpg").read_bytes())
        until(
            lambda: all(httpx.get(f"{r.url}/readyz", timeout=60, trust_env=False).status_code == 200 for r in running), limit_s=60
        )
        asking = threading.Thread(target=shoppers.run)
        asking.start()
        made = Stack(registry, versions, running, process_environment(settings), promoter.server(), shoppers)
        try:
            assert made.act("promote", versions[1]) == 0
            made.in_order(versions[1], versions[0])
            yield made
        finally:
            shoppers.stop.set()
            asking.join(90)


def point_of(stack: Stack, point: str) -> str:
    """The slot's alias by its colour: the one that is not live."""
    held = stack.aliases()
    idle = next(slot for slot in ("blue", "green") if held[slot] != held["live"])
    return point.replace("blue or green", idle)


@pytest.mark.parametrize("kill_at", [*(f"after {point}" for point in POINTS), *EVERY])
def test_a_killed_promotion_is_finished_by_the_next_one(stack: Stack, kill_at: str) -> None:
    old, new = stack.aliases()["live"], stack.other()
    code = stack.act("promote", new, point_of(stack, kill_at))
    assert code in (-9, 0), "killed, or over before that many writes"
    assert stack.aliases()["live"] in (old, new)
    assert stack.serving() <= {old, new}
    assert stack.act("promote", new) == 0
    stack.in_order(new, old)
    assert stack.registry.version(INDEX_MODEL, new).tags["bake"].startswith("kept")


@pytest.mark.parametrize("kill_at", ["before alias live", "after alias live", *EVERY])
def test_a_killed_promotion_can_be_rolled_back_or_undone(stack: Stack, kill_at: str) -> None:
    old, before, new = stack.aliases()["live"], stack.aliases()["previous"], stack.other()
    stack.act("promote", new, point_of(stack, kill_at))
    went_live = stack.aliases()["live"] == new
    target = old if went_live else before
    assert stack.act("rollback", target) == 0
    stack.in_order(target, new if went_live else old)


@pytest.mark.parametrize("kill_at", [pytest.param("before alias live", marks=pytest.mark.kill_drill), "after alias live"])
def test_a_killed_rollback_is_finished_by_pressing_the_button_again(stack: Stack, kill_at: str) -> None:
    live, previous = stack.aliases()["live"], stack.aliases()["previous"]
    assert stack.act("rollback", previous, kill_at) == -9
    assert stack.act("rollback", previous) == 0
    stack.in_order(previous, live)


def test_two_promotions_at_once_go_one_after_the_other(stack: Stack) -> None:
    first, second = stack.other(), stack.aliases()["previous"]
    codes: list[int] = []
    threads = [threading.Thread(target=lambda v=v: codes.append(stack.act("promote", v))) for v in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    assert all(float(stack.registry.version(INDEX_MODEL, v).tags["live_at"]) > 0 for v in (first, second))
    held = stack.aliases()
    stack.in_order(held["live"], held["previous"])
    assert {held["live"], held["previous"]} == {first, second}


def test_two_that_promote_the_same_version_put_it_live_once(stack: Stack) -> None:
    """As two schedulers would: the second waits for the lease, and finds it live and kept."""
    old, new = stack.aliases()["live"], stack.other()
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(stack.act("promote", new))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    stack.in_order(new, old)


def test_a_rollback_reaches_every_replica_at_once(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.pipelines import rollback_index

    for name, value in stack.environ.items():
        monkeypatch.setenv(name, value)
    live, previous = stack.aliases()["live"], stack.aliases()["previous"]
    loaded = stack.loaded(previous)
    done = rollback_index.roll_back("the drill")
    assert (done.version, done.before) == (previous, live)
    assert stack.serving() == {previous}
    assert stack.loaded(previous) == loaded, "no replica loaded anything: the old slot was ready (bench_release has the seconds)"
    stack.in_order(previous, live)


def test_a_version_that_failed_its_gates_is_not_promoted_by_anybody(stack: Stack, tmp_path: Path) -> None:
    from tests.registered import good_gates

    shop = Shop(tmp_path, stack.registry)
    bad = shop.version(good_gates(recall=0.4))
    before = stack.aliases()
    assert stack.act("promote", bad) == 1
    assert stack.act("rollback", bad) == 1
    assert stack.aliases() == before


def test_no_shopper_noticed_anything(stack: Stack) -> None:
    assert stack.shoppers.failed == []
    assert stack.shoppers.asked > 50
