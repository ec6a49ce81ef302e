"""Who may ask, and how often."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from serving.api.auth import Access, ApiKey, read_keys
from serving.api.errors import ApiError
from serving.app import create_app
from serving.settings import ServingSettings
from serving.versions.version_source import FolderSource
from tasks.cli import app as cli
from tasks.errors import SettingsError
from tasks.home_file import write_home_file
from tasks.release.promotion.replay import ReplayQueries, collect_samples
from tasks.release.promotion.serving_replicas import Replica, poll_aliases
from tasks.release.promotion.shadow import compare
from tasks.settings import Settings
from tests.catalogs import picture
from tests.running import Served
from tests.serving.conftest import TOKEN


def key_file(folder: Path, **keys: int) -> Path:
    path = folder / "keys.json"
    digest = {name: sha256(f"{name}'s key".encode()).hexdigest() for name in keys}
    path.write_text(json.dumps([{"name": n, "sha256": digest[n], "per_minute": m} for n, m in keys.items()]))
    return path


def test_a_key_has_its_searches_a_minute_and_gets_them_back_with_time(tmp_path: Path) -> None:
    now = [0.0]
    access = Access("", read_keys(str(key_file(tmp_path, shop=60, app=2))), lambda: now[0])
    access.check_key("shop's key", 60)
    with pytest.raises(ApiError, match="'shop' may search 60 times a minute; try again in 1 s") as refused:
        access.check_key("shop's key")
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
    now[0] = 1.0
    access.check_key("shop's key")
    with pytest.raises(ApiError):
        access.check_key("shop's key")
    access.check_key("app's key", 2)  # another key has its own
    with pytest.raises(ApiError, match="try again in 30 s"):
        access.check_key("app's key")


def test_more_at_once_than_a_key_ever_has_is_not_told_to_wait(tmp_path: Path) -> None:
    access = Access("", read_keys(str(key_file(tmp_path, app=2))), lambda: 0.0)
    with pytest.raises(ApiError, match="the key 'app' may ask 2 searches at once; these are 3") as refused:
        access.check_key("app's key", 3)
    assert (refused.value.status, refused.value.headers) == (422, {})
    access.check_key("app's key", 2)  # nothing was taken


def test_an_unknown_key_is_refused_where_keys_are_asked_for(tmp_path: Path) -> None:
    access = Access("", read_keys(str(key_file(tmp_path, shop=60))))
    for given in ("", "guess", sha256(b"shop's key").hexdigest()):
        with pytest.raises(ApiError) as refused:
            access.check_key(given)
        assert refused.value.status == 401
    Access("", ()).admit({})  # nobody asks


def test_without_an_admin_token_nobody_is_admin() -> None:
    for token, given in (("", ""), ("", "Bearer "), ("secret", "Bearer secre"), ("secret", "")):
        with pytest.raises(ApiError):
            Access(token, ()).check_admin(given)
    Access("secret", ()).check_admin("Bearer secret")


def test_the_admin_token_goes_with_its_scheme_in_any_case() -> None:
    access = Access("secret", ())
    assert [access.is_admin(f"{scheme} secret") for scheme in ("Bearer", "bearer", "BEARER")] == [True] * 3
    assert [access.is_admin(given) for given in ("secret", "Basic secret", "Bearersecret", "Bearer")] == [False] * 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("{}", "list"),
        ('[{"name": "a", "sha256": "key"}]', "0.sha256"),
        ('[{"name": "a", "sha256": "' + "0" * 64 + '", "per_minute": 0}]', "0.per_minute"),
    ],
)
def test_a_file_of_keys_that_does_not_fit_stops_the_start(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        create_app(ServingSettings(api_keys=str(path)), FolderSource(tmp_path))
    with pytest.raises(ValueError, match="cannot be read"):
        read_keys(str(tmp_path / "none"))
    assert ApiKey(name="a", sha256="0" * 64).per_minute == 600


def test_over_http_every_way_to_search_asks_for_the_key(home: Path, tmp_path: Path) -> None:
    settings = ServingSettings(release=str(home / "release"), api_keys=str(key_file(tmp_path, shop=4)), poll_s=0.05)
    app = create_app(settings)
    app.state.replica.slots.refresh()
    with TestClient(app) as client:
        ways = [
            lambda **h: client.post("/v1/search", json={"product_id": "p001"}, headers=h),
            lambda **h: client.get("/v1/search", params={"product_id": "p001"}, headers=h),
            lambda **h: client.get("/v1/products/p001/similar", headers=h),
            lambda **h: client.post("/v1/search/batch", json={"searches": [{"product_id": "p001"}]}, headers=h),
        ]
        for ask in ways:
            assert ask().status_code == 401
            answer = ask(**{"x-api-key": "shop's key"})
            assert answer.status_code == 200
            assert "public" not in answer.headers["cache-control"]
        limited = ways[0](**{"x-api-key": "shop's key"})
        assert (limited.status_code, limited.json()["reason"]) == (429, "rate")
        assert int(limited.headers["retry-after"]) >= 1


def test_an_admin_needs_no_key_and_uses_none_up(home: Path, tmp_path: Path) -> None:
    """As a promotion asks: its client sends the admin token alone."""
    keys = str(key_file(tmp_path, shop=1))
    (home / "release" / "aliases.json").write_text('{"blue": "1", "green": "2", "live": "1"}')
    app = create_app(ServingSettings(release=str(home / "release"), admin_token=TOKEN, api_keys=keys))
    app.state.replica.slots.refresh()
    vector = [1.0] + [0.0] * 15
    with Served(app) as served:
        for _ in range(3):
            assert len(Replica(served.url, TOKEN).search("green", vector, 5)) == 5
        admin = {"Authorization": f"Bearer {TOKEN}"}
        searches = {"searches": [{"product_id": "p001"}] * 3}
        batch = httpx.post(f"{served.url}/v1/search/batch", json=searches, headers=admin, timeout=60, trust_env=False)
        assert batch.status_code == 200
        assert (
            "public"
            not in httpx.get(f"{served.url}/v1/products/p001/similar", headers=admin, timeout=60, trust_env=False).headers[
                "cache-control"
            ]
        )


def test_a_refused_token_is_one_sentence_that_names_the_setting(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever asks it, with a wrong token or none; and once the home's file has the token, commands beside it find it there."""
    monkeypatch.setenv("VITRINE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VITRINE_ADMIN_TOKEN", raising=False)
    keys = str(key_file(tmp_path, shop=1))
    replica = create_app(ServingSettings(release=str(home / "release"), admin_token=TOKEN, api_keys=keys))
    replica.state.replica.slots.refresh()
    with Served(replica) as served:
        monkeypatch.setenv("VITRINE_SERVING_URLS", served.url)
        for token, says in (
            ("a guess", "does not take this admin token"),
            ("", "asks for the admin token, and none is set here"),
        ):
            asked = Replica(served.url, token)
            sentence = rf"{says}: set VITRINE_ADMIN_TOKEN .*the environment, .*\.env and {tmp_path}/home/settings\.env"
            for ask in (asked.poll_aliases, lambda a=asked: a.samples(5), lambda a=asked: a.search("blue", [1.0] + [0.0] * 15)):
                with pytest.raises(SettingsError, match=sentence):
                    ask()
            poll_aliases([asked])
            assert collect_samples([asked], 5) == []
            with pytest.raises(SettingsError, match=sentence):
                compare([asked], "blue", "", ReplayQueries(np.eye(16, dtype=np.float32)[:1], None, "photos"), [["p001"]])
        photo = str(next((home / "shop" / "images").glob("*.jpg"), "") or picture(tmp_path / "photo.jpg", 1))
        refused = CliRunner().invoke(cli, ["search", photo])
        assert isinstance(refused.exception, SettingsError)
        assert "VITRINE_ADMIN_TOKEN" in str(refused.exception)
        write_home_file(replace(Settings.load(), admin_token=TOKEN), ())
        found = CliRunner().invoke(cli, ["search", photo])
        assert found.exit_code == 0, found
