"""Replicas over a real MLflow server whose artifact store somebody writes to: what was not registered never goes live."""

import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.contract.binding import GATES_VERDICT, MANIFEST_SHA256, SIGNATURE_TAG, BindingPolicy
from serving.contract.files import ContractError
from serving.versions.slots import Slots
from serving.versions.version_source import MlflowSource
from tasks.registry import INDEX_MODEL, INDEX_PATH, Registry
from tasks.release.bind import bind_versions, versions_to_bind
from tasks.release.export import export_release
from tests.keys import key_files
from tests.registered import Shop, good_gates
from tests.releases import source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]


@dataclass
class Store:
    """A shop with version `first` live in blue, and `second` to be attacked."""

    shop: Shop
    first: str
    second: str

    def slots(self, trust: BindingPolicy, cache: str = "replica") -> Slots:
        slots: Slots = Slots(MlflowSource(self.shop.registry.uri, self.shop.home / cache, trust=trust))
        slots.refresh()
        return slots

    def manifest(self, version: str) -> dict:
        return json.loads(self.read(version))

    def read(self, version: str) -> bytes:
        registry = Registry(self.shop.registry.uri, self.shop.home / "plain")
        run = registry.version(INDEX_MODEL, version).run_id
        return registry.fetch(run, f"{INDEX_PATH}/manifest.json", self.shop.home / "plain" / version).read_bytes()

    def swap(self, version: str, data: bytes) -> None:
        """Writes another manifest over the artifact of a version, as whoever can write artifacts would."""
        path = self.shop.home / "swapped" / "manifest.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        run = self.shop.registry.version(INDEX_MODEL, version).run_id
        self.shop.registry.client.log_artifact(run, str(path), INDEX_PATH)

    def tag(self, version: str, name: str, value: str) -> None:
        self.shop.registry.tag_version(INDEX_MODEL, version, name, value)

    def untag(self, version: str, *names: str) -> None:
        for name in names:
            self.shop.registry.client.delete_model_version_tag(INDEX_MODEL, version, name)


@pytest.fixture
def store(mlflow_uri: str, tmp_path: Path) -> Store:
    shop = Shop(tmp_path, Registry(mlflow_uri, tmp_path / "cache"))
    shop.key = key_files(tmp_path)[0]
    made = Store(shop, shop.version(), shop.version())
    shop.point(live=made.first, blue=made.first, green=made.first)
    return made


def test_a_manifest_that_was_swapped_in_the_artifact_store_never_goes_live(store: Store) -> None:
    trust = BindingPolicy()
    slots = store.slots(trust)
    assert slots.live.version == store.first
    # The manifest of the other version: valid, with files that are there and verify.
    store.swap(store.second, store.read(store.first))
    store.shop.point(green=store.second, live=store.second)
    slots.refresh()
    assert slots.live.version == store.first
    assert slots.slots["green"].state == "failed"
    assert f"index version {store.second}: its manifest has sha256 " in slots.slots["green"].reason
    assert "it was replaced or damaged in the artifact store" in slots.slots["green"].reason
    fresh = store.slots(trust, "fresh")
    assert fresh.live is None, "nor in a replica that starts now"
    with pytest.raises(Exception, match="it was replaced or damaged in the artifact store"):
        Registry(store.shop.registry.uri, store.shop.home / "other").index_manifest(store.second)


def test_a_manifest_is_not_parsed_before_it_is_found_to_be_the_registered_one(store: Store) -> None:
    store.swap(store.second, b"[" * 1_000_000)
    store.shop.point(green=store.second)
    slots = store.slots(BindingPolicy())
    assert "it was replaced or damaged in the artifact store" in slots.slots["green"].reason


def test_a_version_whose_gates_failed_is_not_served_though_an_alias_names_it(store: Store) -> None:
    bad = store.shop.version(good_gates(p99_ms=300))
    store.shop.point(green=bad, live=bad)
    slots = store.slots(BindingPolicy())
    assert slots.live is None
    assert f"index version {bad} did not pass its gates (gates.verdict: failed: p99_ms)" in slots.slots["green"].reason


def test_a_verdict_of_now_counts_though_the_manifest_cannot_be_fetched_any_more(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.shop.point(green=store.second)
    assert store.slots(BindingPolicy()).slots["green"].state == "ready"
    store.tag(store.second, GATES_VERDICT, "failed: p99_ms")

    def away(source: MlflowSource, run: str, artifact: str, into: Path) -> Path:
        raise ContractError("http://shop:hidden@store/ does not answer\nat all")

    monkeypatch.setattr(MlflowSource, "_download", away)
    again = store.slots(BindingPolicy())
    assert again.live.version == store.first, "its manifest is the one last read, its tags are those of now"
    assert "did not pass its gates" in again.slots["green"].reason
    assert f"index version {store.first} is loaded by what was last read of it" in caplog.text
    assert "hidden" not in caplog.text


def unbind(store: Store) -> None:
    store.untag(store.second, MANIFEST_SHA256, GATES_VERDICT)


def test_a_version_of_before_loads_with_a_warning_until_bound_ones_are_required(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    unbind(store)
    store.shop.point(green=store.second)
    slots = store.slots(BindingPolicy())
    assert slots.slots["green"].state == "ready"
    assert f"index version {store.second} is of before versions were bound to their manifests" in caplog.text
    asked = store.slots(BindingPolicy(require_bound=True), "asked")
    assert asked.slots["blue"].state == "ready"
    assert "is not bound to its manifest" in asked.slots["green"].reason
    assert f"vitrine release bind {store.second}" in asked.slots["green"].reason

    versions = [v for v in versions_to_bind(store.shop.registry) if v.model == INDEX_MODEL and v.version == store.second]
    done = bind_versions(store.shop.registry, versions, None)
    assert done == [f"index version {store.second} is bound to its manifest"]
    assert store.slots(BindingPolicy(require_bound=True), "bound").slots["green"].state == "ready"
    assert store.shop.registry.version(INDEX_MODEL, store.second).tags[GATES_VERDICT] == "passed"
    versions = [store.shop.registry.version(INDEX_MODEL, store.second)]
    assert bind_versions(store.shop.registry, versions, None) == [], "there is nothing left to do"


def resign(store: Store) -> bytes:
    """A manifest that an attacker signed, with a key of the attacker's own."""
    other = key_files(store.shop.home, b"x")[0]
    from tasks.registry.binding import signed

    manifest = Registry(store.shop.registry.uri, store.shop.home / "other").index_manifest(store.second)
    return signed(manifest.model_copy(update={"signature": "", "id": "evil"}), other).to_json().encode()


def unsign(store: Store) -> bytes:
    return json.dumps({k: v for k, v in store.manifest(store.second).items() if k != "signature"}).encode()


def change(store: Store) -> bytes:
    return json.dumps(store.manifest(store.second) | {"id": "evil"}).encode()


@pytest.mark.parametrize(
    ("made", "sentence"),
    [(resign, "is not what was signed, or was signed with another key"), (unsign, "is not signed"), (change, "is not what was signed")],
)  # fmt: skip
def test_with_a_key_not_even_whoever_writes_the_registry_too_brings_a_version_live(
    made: Callable[[Store], bytes], sentence: str, store: Store
) -> None:
    trust = BindingPolicy(key_files(store.shop.home)[0].public_key(), True)
    assert store.slots(trust, "before").live.version == store.first
    store.swap(store.second, made(store))
    unbind(store)
    bind_versions(store.shop.registry, [store.shop.registry.version(INDEX_MODEL, store.second)], None)
    store.shop.point(green=store.second, live=store.second)
    slots = store.slots(trust)
    assert slots.live is None
    assert sentence in slots.slots["green"].reason


def test_an_unsigned_version_is_signed_afterwards_and_an_exported_release_carries_either_signature(store: Store) -> None:
    key, trust = store.shop.key, BindingPolicy(key_files(store.shop.home)[0].public_key())
    store.shop.key = None
    unsigned = store.shop.version()
    store.shop.point(green=unsigned)
    assert "is not signed, and a key is set" in store.slots(trust).slots["green"].reason
    bind_versions(store.shop.registry, [store.shop.registry.version(INDEX_MODEL, unsigned)], key)
    assert SIGNATURE_TAG in store.shop.registry.version(INDEX_MODEL, unsigned).tags
    assert store.slots(trust, "signed").slots["green"].state == "ready"
    for version in (unsigned, store.second):
        home = store.shop.home / "exported" / version
        registry = Registry(store.shop.registry.uri, store.shop.home / "exporting")
        export_release(registry, home / "release", version)
        exported = source(home)
        exported.trust = trust
        slots: Slots = Slots(exported)
        slots.refresh()
        assert slots.live is not None, slots.describe()
        path = home / "release" / version / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"id": "evil"}))
        slots = Slots(exported)
        slots.refresh()
        assert "is not what was signed" in slots.slots["blue"].reason


def test_the_cache_is_its_owners_alone_and_read_only(store: Store) -> None:
    store.slots(BindingPolicy())
    cache = store.shop.home / "replica"
    assert {stat.S_IMODE(p.stat().st_mode) for p in (cache, *cache.rglob("*")) if p.is_dir()} == {0o700}
    held = [p for name in ("files", "encoders") for p in (cache / name).rglob("*") if p.is_file()]
    assert held
    assert {stat.S_IMODE(p.stat().st_mode) for p in held} == {0o444}
