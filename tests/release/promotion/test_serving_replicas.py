"""Which replicas a promotion waits for."""

import socket
from typing import Any

import pytest

from tasks.release.promotion.serving_replicas import urls_of

PODS = ("10.0.0.7", "10.0.0.9")


def answering(*addresses: str) -> Any:
    def getaddrinfo(host: str, port: int, **kwargs: Any) -> list[tuple]:
        if not addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in (*addresses, *addresses)]

    return getaddrinfo


@pytest.mark.parametrize(
    ("url", "addresses", "expected"),
    [
        ("http://gateways:8000", PODS, ["http://10.0.0.7:8000", "http://10.0.0.9:8000"]),
        ("http://gateways/search", PODS, ["http://10.0.0.7:80/search", "http://10.0.0.9:80/search"]),
        ("http://gateways:8000", PODS[:1], ["http://gateways:8000"]),
        ("http://gateways:8000", (), ["http://gateways:8000"]),
        ("https://gateways", PODS, ["https://gateways"]),
    ],
)
def test_a_name_with_several_addresses_stands_for_all_of_them(
    url: str, addresses: tuple[str, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answering(*addresses))
    assert urls_of(url) == expected
