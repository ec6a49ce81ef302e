"""A promotion over gateways: it waits until their shards hold the version, says which one does not, and goes back at once."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tasks.errors import VitrineError
from tasks.registry import Version
from tasks.release.promotion.blue_green import choose_slot, flip, rollback, warm
from tasks.release.promotion.serving_replicas import Replica
from tests.running import Served, until
from tests.serving.cluster.conftest import TOKEN, gateway_app, shard_app
from tests.serving.replica.storefront import Storefront

pytestmark = pytest.mark.slow


class FolderAliases:
    """The aliases of an exported release, as a promotion reads and writes them."""

    def __init__(self, store: Storefront) -> None:
        self.store = store
        self.tags: dict[str, dict[str, str]] = {}

    def alias(self, model: str, alias: str) -> Version | None:
        version = json.loads((self.store.release / "aliases.json").read_text()).get(alias)
        return Version(model, version, "run", self.tags.get(version, {}), (), "", 0) if version else None

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.store.point(**{alias: version})

    def tag_version(self, model: str, version: str, tag: str, value: str) -> None:
        self.tags.setdefault(version, {})[tag] = value


def test_two_gateways_are_promoted_and_rolled_back(store: Storefront, tmp_path: Path) -> None:
    with ExitStack() as stack:
        urls = [stack.enter_context(Served(shard_app(store, s))).url for s in (0, 1)]
        gateways = [Replica(stack.enter_context(Served(gateway_app(store, urls))).url, TOKEN) for _ in range(2)]
        until(lambda: all(g.version()["live"] for g in gateways))
        aliases = FolderAliases(store)
        plan = choose_slot(aliases, "2")
        warm(aliases, gateways, plan, 120)
        flip(aliases, gateways, plan, 120)
        assert [g.version()["live"]["version"] for g in gateways] == ["2", "2"]
        vector = store.vectors["2"][3].tolist()
        assert gateways[0].search(plan.slot, vector) == gateways[1].search(plan.slot, vector)
        rollback(aliases, gateways, 120, 120)
        assert [g.version()["live"]["version"] for g in gateways] == ["1", "1"]
        held = shutil.move(store.release / "2", tmp_path / "held")
        (store.release / "3").symlink_to(held)
        digest = "0" * 64
        manifest = json.loads((Path(held) / "manifest.json").read_text())
        manifest["segments"][1]["index"]["sha256"] = digest
        (Path(held) / "manifest.json").write_text(json.dumps(manifest))
        broken = choose_slot(aliases, "3")
        with pytest.raises(VitrineError, match="failed: shard 1 could not load version 3"):
            warm(aliases, gateways, broken, 120)
        assert [g.version()["live"]["version"] for g in gateways] == ["1", "1"]


def test_a_promotion_that_waits_names_the_shard_it_waits_for(store: Storefront) -> None:
    with ExitStack() as stack:
        shards = [stack.enter_context(Served(shard_app(store, s))) for s in (0, 1)]
        gateway = Replica(stack.enter_context(Served(gateway_app(store, [s.url for s in shards]))).url, TOKEN)
        until(lambda: bool(gateway.version()["live"]))
        shards[1].__exit__(None, None, None)
        aliases = FolderAliases(store)
        plan = choose_slot(aliases, "2")
        store.point(green="2")
        until(lambda: "no process that holds shard 1" in gateway.version()["slots"]["green"]["reason"])
        with pytest.raises(VitrineError, match="green is loading: no process that holds shard 1 answers"):
            warm(aliases, [gateway], plan, 3)
        assert httpx.get(f"{gateway.url}/readyz", timeout=60, trust_env=False).json() == {"status": "ready", "version": "1"}
