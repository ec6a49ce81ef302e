"""docs/operate/upgrade.md step by step, under searches: from commit 8710f00, whose formats are the oldest that are read, to this tree;
then the way back, and the upgrade once more."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
import pytest

from tasks.registry import INDEX_MODEL
from tasks.settings import PROJECT
from tests.chaos.drill import CLIENTS, HOUR_S, RATE
from tests.chaos.shop import Shop
from tests.chaos.stack import Stack, Variant, replica, started, upload_pictures, wait_for_mlflow
from tests.e2e.rehearsing import MARKS, Rehearsal
from tests.load import Load
from tests.running import until

pytestmark = MARKS

EARLIER = "8710f008eb62107b90a0d5b533e8eab00e0396d7"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the commit that is upgraded from."""
    packed = subprocess.run(["git", "-C", str(PROJECT), "archive", EARLIER], capture_output=True, check=False)
    if packed.returncode:
        pytest.skip(f"commit {EARLIER[:7]} is what is upgraded from, and this is no clone with its history")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as tree:
        tree.extractall(folder, filter="data")
    return folder


def run_earlier(stack: Stack, earlier: Path, what: str, argument: str) -> None:
    """The earlier tree's pipeline; see pipeline_8710f00.py."""
    command = [sys.executable, "-P", "-W", "ignore", str(Path(__file__).with_name("pipeline_8710f00.py")), what, argument]
    environment = os.environ | stack.environment | {"PYTHONPATH": str(earlier)}
    done = subprocess.run(command, cwd=earlier, env=environment, capture_output=True, text=True, check=False, timeout=HOUR_S)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@dataclass
class Upgrade(Rehearsal):
    """The rehearsal with either tree's pipeline: `code` is the one that runs."""

    code: Path = PROJECT

    def run(self, story: str, key: str) -> None:
        if self.code == PROJECT:
            super().run(story, key)
        else:
            run_earlier(self.stack, self.code, story, key)

    def replace_replicas(self, code: Path) -> None:
        """One at a time, each ready before the next; after each, both answer as the live version did."""
        stack, version = self.stack, self.live()
        for name, url in zip(("serving-1", "serving-2"), stack.settings.serving_urls, strict=True):
            assert stack.supervisor.stop(name), f"{name} did not run"
            port = int(stack.services[name].environment["VITRINE_PORT"])
            stack.services[name] = replica(name, stack.folder, stack.settings, port, {}, code)
            stack.supervisor.start(stack.services[name])
            until(lambda url=url: is_ready(url), f"{name} is ready", 120)
            self.same_answers(version)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def upgrade(earlier: Path) -> Iterator[Upgrade]:
    def fill(stack: Stack) -> None:
        shop = upload_pictures(stack)
        wait_for_mlflow(stack.direct)
        run_earlier(stack, earlier, "fill", str(shop))

    with started(Variant(fill, earlier, two_replicas=True)) as stack:
        yield Upgrade(stack, Shop(stack), code=earlier)


def test_an_upgrade_and_the_way_back_cost_no_search(upgrade: Upgrade, earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop, registry = upgrade.shop, upgrade.stack.direct
    shop.open()
    upgrade.night("first-night")
    with Load(upgrade.stack.url, shop.searches(), CLIENTS, 3600.0, RATE) as load:
        shop.change()
        upgrade.hour("hour-of-before")

        upgrade.replace_replicas(PROJECT)
        shop.change()
        before = upgrade.hour("hour-of-before-on-new-replicas")

        upgrade.code = PROJECT
        upgrade.command("changes", "capture")
        shop.change()
        hour = registry.index_manifest(upgrade.hour("hour"))
        assert (hour.parent, hour.format, registry.index_manifest(before).format) == (before, 2, 1)
        shop.change()
        upgrade.night("night")

        upgrade.command("release", "rollback", "--to", before)
        upgrade.same_answers(before)
        upgrade.replace_replicas(earlier)
        for version in registry.versions(INDEX_MODEL):
            if int(version.version) > int(before):
                registry.delete_version(INDEX_MODEL, version.version)
        upgrade.code = earlier
        upgrade.night("night-after-the-way-back")
        shop.change()
        upgrade.hour("hour-after-the-way-back")

        upgrade.replace_replicas(PROJECT)
        upgrade.code = PROJECT
        shop.change()
        upgrade.hour("hour-of-the-second-try")
        shots = load.stop()
    with capsys.disabled():
        print(
            f"\n{len(shots.status)} searches, {shots.failed} failed, slowest {shots.ms(100):.0f} ms, {len(upgrade.answers)} versions"
        )
    assert shots.failed == 0, sorted(set(shots.status[~shots.ok].tolist()))
    assert set(shots.version) <= set(upgrade.answers), "answers of versions that never went live"
