"""What waits is bounded, and whoever finds no place is told so at once."""

import asyncio
import socket
from pathlib import Path

import httpx
import pytest

from serving.api.admission import AdmissionLimit
from serving.api.client_address import client_address, lies_in, read_networks
from serving.api.errors import ApiError
from serving.app import create_app
from serving.main import serve
from serving.search.image_fetch import Fetcher
from serving.settings import ServingSettings
from tests.running import Served, until


def test_a_place_is_free_again_however_it_was_left() -> None:
    places = AdmissionLimit(1, "things are here")
    for _ in range(2):
        with pytest.raises(KeyError), places.admit():
            raise KeyError
    with places.admit():
        with pytest.raises(ApiError, match="too many things are here; try again in a second") as refused, places.admit():
            pass
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
    assert places.in_use == 0


def test_one_address_holds_its_share_and_leaves_the_rest_to_others() -> None:
    places = AdmissionLimit(4, "things are here", 0.5)
    with places.admit("a"), places.admit("a"):
        with pytest.raises(ApiError), places.admit("a"):
            pass
        with places.admit("b"), places.admit("c"):
            assert places.in_use == 4
    assert not places.by_address


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_all_addresses_of_an_ipv6_network_are_one_client(host: str, client: str) -> None:
    assert client_address(host) == client


def test_proxies_are_addresses_and_networks() -> None:
    networks = read_networks(("10.0.0.5", "10.4.3.2/16", "2001:db8::/32"))
    inside = ["10.0.0.5", "10.4.255.255", "2001:db8::1", "2001:db8:ffff::1"]
    outside = ["10.0.0.6", "10.5.0.0", "2001:db9::1", "2001:db8::/64", "::ffff:10.0.0.5", "testclient", ""]
    assert [host for host in inside + outside if lies_in(host, networks)] == inside


@pytest.mark.parametrize("odd", ["*", "proxy", "10.0.0.0/33", "10.0.0"])
def test_a_proxy_that_is_neither_stops_the_start_with_one_sentence(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRINE_PROXIES", f"10.0.0.5,{odd}")
    with pytest.raises(SystemExit) as ended:
        serve()
    assert ended.value.code == f"VITRINE_PROXIES holds {odd!r}, which is neither an address nor a network such as 10.0.0.0/8"


def test_photos_of_a_slow_host_are_refused_beyond_those_that_may_wait(home: Path) -> None:
    """Four are fetched and two wait; a host that takes connections and says nothing keeps all of them until their time is over."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as slow:
        shop = f"shop:{slow.getsockname()[1]}"
        fetcher = Fetcher((shop,), timeout_s=9.0, schemes=("http",), private=True, resolve=lambda host, port: ["127.0.0.1"])
        app = create_app(ServingSettings(release=str(home / "release"), queue=2, address_share=1.0), fetcher=fetcher)
        replica = app.state.replica
        replica.slots.refresh()

        async def ask(url: str) -> tuple[httpx.Response, list[httpx.Response], list[httpx.Response]]:
            photos = [{"image_url": f"http://{shop}/{n}.jpg"} for n in range(12)]
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=90) as client:
                short = {"X-Timeout-Ms": "8000"}
                late = [asyncio.create_task(client.post("/v1/search", json=body, headers=short)) for body in photos[:6]]
                await asyncio.to_thread(until, lambda: replica.fetches.in_use == 6)
                refused = await asyncio.gather(*(client.post("/v1/search", json=body) for body in photos[6:]))
                product = await client.post("/v1/search", json={"product_id": "p001"})
                return product, refused, await asyncio.gather(*late)

        with Served(app) as served:
            product, refused, late = asyncio.run(ask(served.url))
        assert product.status_code == 200
        assert {answer.status_code for answer in late} == {504}
        assert {(a.status_code, a.json()["reason"], a.headers["retry-after"]) for a in refused} == {(503, "overloaded", "1")}
        assert replica.fetches.in_use == 0
