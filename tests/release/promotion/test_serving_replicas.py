"""Which replicas a promotion waits for."""

import socket
from typing import Any

import httpx
import pytest

from tasks.release.promotion.serving_replicas import Replica, stragglers, urls_of

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


class Scripted(Replica):
    """A replica with one answer for each look, the last for all that follow; "" is none."""

    def __init__(self, url: str, *answers: str) -> None:
        super().__init__(url)  # the dataclass is frozen
        object.__setattr__(self, "answers", list(answers))

    def version(self) -> dict[str, Any]:
        answers: list[str] = self.answers  # type: ignore[attr-defined]
        said = answers.pop(0) if len(answers) > 1 else answers[0]
        if not said:
            raise httpx.ConnectError("refused")
        return {"said": said}


@pytest.mark.parametrize(
    ("answers", "late"),
    [
        (["there"], {}),
        (["loading", "there"], {}),
        ([""], {"http://b": "no answer (ConnectError)"}),
        (["loading", ""], {"http://b": "no answer (ConnectError)"}),
        (["failed: broken"], {"http://b": "failed: broken"}),
    ],
)
def test_what_does_not_answer_is_given_up_once_all_others_followed(answers: list[str], late: dict[str, str]) -> None:
    replicas = [Scripted("http://a", "loading", "there"), Scripted("http://b", *answers)]
    _, found = stragglers(replicas, lambda s: "" if s["said"] == "there" else s["said"], 3600, silent_s=0.0)
    assert {url: why for url, why in found.items() if why != "loading"} == late
