"""A replica over a real MLflow server: fetching once, verifying always, and a flip by alias while questions are asked."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from mlflow import MlflowClient

from serving.app import create_app
from serving.contract.files import ContractError
from serving.contract.manifest import EncoderManifest, IndexManifest
from serving.settings import ServingSettings
from serving.versions.slots import Slots
from serving.versions.version_source import MODEL, MlflowSource
from tasks.registry import Registry
from tests.catalog.changes.refreshed import forget_versions
from tests.relay import Relay
from tests.serving.replica.storefront import Storefront, corrupt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
]


@pytest.fixture(scope="module")
def registered(mlflow_uri: str, front: Storefront) -> MlflowClient:
    """Both versions of the storefront as a pipeline registers them: encoder/ and index/ artifacts of runs, aliases on top."""
    client = MlflowClient(mlflow_uri, mlflow_uri)
    forget_versions(Registry(mlflow_uri, front.release.parent / "registry"))
    experiment = client.create_experiment("replica")
    client.create_registered_model(MODEL)
    for version in ("1", "2"):
        run = client.create_run(experiment).info.run_id
        manifest = IndexManifest(**front.manifest(version))
        client.log_artifacts(run, str(front.release / "encoders" / manifest.encoder.manifest.sha256), "encoder")
        moved = {}
        for ref in manifest.files():
            name = f"{ref.sha256[:8]}-{Path(ref.path).name}"
            client.log_artifact(run, _named(front.release / "files" / ref.sha256, name), "index")
            moved[ref.sha256] = ref.model_copy(update={"run_id": run, "path": f"index/{name}"})
        segments = tuple(
            s.model_copy(update={"table": moved[s.table.sha256], "index": s.index and moved[s.index.sha256]})
            for s in manifest.segments
        )
        encoder = manifest.encoder.model_copy(update={"run_id": run})
        manifest = manifest.model_copy(update={"segments": segments, "golden": moved[manifest.golden.sha256], "encoder": encoder})
        client.log_text(run, manifest.model_dump_json(), "index/manifest.json")
        client.create_model_version(MODEL, f"{client.get_run(run).info.artifact_uri}/index", run)
    return client


def _named(path: Path, name: str) -> str:
    target = path.parent.parent / "named" / name
    target.parent.mkdir(exist_ok=True)
    shutil.copy(path, target)
    return str(target)


def test_versions_are_fetched_once_and_mended_when_the_disk_lies(
    registered: MlflowClient, mlflow_uri: str, tmp_path: Path
) -> None:
    registered.set_registered_model_alias(MODEL, "blue", "1")
    registered.set_registered_model_alias(MODEL, "live", "1")
    source = MlflowSource(mlflow_uri, tmp_path / "cache")
    slots = Slots(source)
    slots.refresh()
    assert slots.live is not None, slots.describe()
    files = {p: p.stat().st_ino for p in (tmp_path / "cache" / "files").iterdir()}
    again = Slots(MlflowSource(mlflow_uri, tmp_path / "cache"))
    again.refresh()
    assert {p: p.stat().st_ino for p in files} == files
    # A disk that lost a bit, of an index and of an encoder: fetched again, and right.
    damaged = next(iter(files))
    corrupt(damaged)
    encoder = next((tmp_path / "cache" / "encoders").iterdir())
    corrupt(encoder / EncoderManifest.model_validate_json((encoder / "encoder.json").read_bytes()).golden.path)
    mended = Slots(MlflowSource(mlflow_uri, tmp_path / "cache"))
    mended.refresh()
    assert mended.live is not None, mended.describe()
    assert list((tmp_path / "cache" / "incoming").iterdir()) == []


def test_a_replica_starts_by_what_it_last_read_while_mlflow_is_away(
    registered: MlflowClient, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for alias, version in (("blue", "1"), ("green", "2"), ("live", "1")):
        registered.set_registered_model_alias(MODEL, alias, version)
    relay = Relay(int(mlflow_uri.rpartition(":")[2]))
    address = f"http://127.0.0.1:{relay.port}"

    def started(cache: Path) -> Slots:
        slots: Slots = Slots(MlflowSource(address, cache))
        slots.refresh()
        return slots

    assert started(tmp_path / "cache").live is not None
    relay.cut()
    slots = started(tmp_path / "cache")
    assert slots.live is not None, slots.describe()
    assert slots.live.version == "1"
    assert slots.error.startswith("the registry does not answer"), "and says that it is away"
    assert set(slots.source.files_by_version) == {"1", "2"}, "what evictions spare"  # type: ignore[attr-defined]
    assert started(tmp_path / "other").live is None, "nothing was ever read there"
    for kept in (tmp_path / "cache" / "last_known").iterdir():
        corrupt(kept)
    assert started(tmp_path / "cache").live is None, "what the disk damaged is not known"
    relay.start()
    registered.set_registered_model_alias(MODEL, "blue", "2")
    registered.set_registered_model_alias(MODEL, "live", "2")
    slots.refresh()
    assert (slots.live and slots.live.version, slots.error) == ("2", "")
    relay.cut()


def _fetched(cache: Path) -> set[str]:
    return {p.name for name in ("files", "encoders") for p in (cache / name).iterdir()}


def _parts(manifest: IndexManifest) -> set[str]:
    return {manifest.encoder.manifest.sha256, *(f.sha256 for f in manifest.files())}


def _fetch_all(source: MlflowSource, version: str) -> IndexManifest:
    manifest = source.manifest(version)
    source.encoder(manifest)
    for ref in manifest.files():
        source.fetch(ref)
    return manifest


def test_the_cache_keeps_to_its_size_and_to_what_is_in_use(registered: MlflowClient, mlflow_uri: str, tmp_path: Path) -> None:
    registered.set_registered_model_alias(MODEL, "live", "1")
    source = MlflowSource(mlflow_uri, tmp_path / "cache", limit_bytes=1)
    source.resolve("live")
    one = _fetch_all(source, "1")
    for _ in range(5):  # a candidate that fails and is tried again
        two = _fetch_all(source, "2")
    assert _fetched(tmp_path / "cache") == _parts(one) | _parts(two)
    registered.set_registered_model_alias(MODEL, "live", "2")
    source.resolve("live")
    source.manifest("2")
    (tmp_path / "cache" / "files" / two.golden.sha256).unlink()
    source.fetch(two.golden)
    assert _fetched(tmp_path / "cache") == _parts(two)
    assert source.encoder(two).is_dir()


def test_what_is_not_there_is_a_sentence(registered: MlflowClient, mlflow_uri: str, tmp_path: Path) -> None:
    source = MlflowSource(mlflow_uri, tmp_path / "cache")
    ref = source.manifest("1").golden
    with pytest.raises(ContractError, match="cannot be fetched"):
        source.fetch(ref.model_copy(update={"path": "index/none.npz", "sha256": "0" * 64}))
    assert source.resolve("nobody") == ""


def test_a_flip_by_alias_fails_no_question_and_mixes_no_versions(
    registered: MlflowClient, mlflow_uri: str, front: Storefront, tmp_path: Path
) -> None:
    """Each version has another encoder: an answer with the vector of one and the index of the other would be seen."""
    for alias, version in (("blue", "1"), ("green", "2"), ("live", "1")):
        registered.set_registered_model_alias(MODEL, alias, version)
    settings = ServingSettings(mlflow_uri=mlflow_uri, cache=tmp_path / "cache", poll_s=0.05, queue=1000)
    with TestClient(create_app(settings)) as client:
        until = time.monotonic() + 60
        while [s["state"] for s in client.get("/v1/version").json()["slots"].values()] != ["ready", "ready"]:
            assert time.monotonic() < until, client.get("/v1/version").json()
            time.sleep(0.05)
        body = {"image": ("p.jpg", front.photos[front.ids[7]])}
        form = {"k": "48"}
        expected = {}
        for version in ("1", "2"):
            registered.set_registered_model_alias(MODEL, "live", version)
            _until_live(client, version)
            expected[version] = client.post("/v1/search", files=body, data=form).json()["results"]
        assert expected["1"] != expected["2"]
        stop = threading.Event()
        seen: list[str] = []
        wrong: list[str] = []

        def ask() -> None:
            while not stop.is_set():
                response = client.post("/v1/search", files=body, data=form)
                answer = response.json()
                if response.status_code != 200 or answer["results"] != expected[answer["version"]["index"]]:
                    wrong.append(response.text)
                seen.append(answer["version"]["index"])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for flip in range(6):
                version = "12"[flip % 2]
                registered.set_registered_model_alias(MODEL, "live", version)
                _until_live(client, version)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert wrong == []
        assert set(seen) == {"1", "2"}


def _until_live(client: TestClient, version: str) -> None:
    until = time.monotonic() + 60
    while client.get("/v1/version").json()["live"]["version"] != version:
        assert time.monotonic() < until
        time.sleep(0.02)
