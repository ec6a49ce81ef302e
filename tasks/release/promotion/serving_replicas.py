"""HTTP client of the serving replicas, for promotion and monitoring."""

import base64
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import numpy as np

from serving.contract.box import Box
from tasks.errors import ServiceAway, SettingsError
from tasks.settings import Settings, setting_sources

POLL_S = 0.2
AT_ONCE = 32
SILENT_S = 10.0
"""How long a rollback waits for replicas that do not answer at all, once the others have followed."""
NO_ANSWER = "no answer"

T = TypeVar("T")


def urls_of(url: str) -> list[str]:
    """The url of every address that an http:// url's name resolves to, where those are several, as for a headless service.

    One address, none, or https (whose certificate is for the name): the url as it is.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.username:
        return [url]
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError:
        return [url]
    hosts = sorted({str(f[4][0]) for f in found})
    return [url] if len(hosts) == 1 else [parts._replace(netloc=f"{host}:{parts.port or 80}").geturl() for host in hosts]


@dataclass(frozen=True)
class SampledQuery:
    """A real query sampled by a replica: unit vector (d,) float32 by the query encoder `fingerprint`, and the photo if stored.

    `box`: the part of the photo that was searched for, None for all of it.
    """

    kind: str
    fingerprint: str
    photo_sha256: str
    vector: np.ndarray
    photo: bytes | None
    box: Box | None = None


@dataclass(frozen=True)
class Replica:
    """One serving process by base url. `token` authenticates admin routes."""

    url: str
    token: str = ""

    def version(self) -> dict[str, Any]:
        """The replica's slots (GET /v1/version). Raises httpx.HTTPError when it does not respond."""
        return client().get(f"{self.url}/v1/version", timeout=5).raise_for_status().json()

    def search(self, slot: str, vector: list[float], k: int = 20) -> list[str]:
        """Product ids that a slot returns for a query vector."""
        body = {"vector": vector, "k": k}
        answer = client().post(f"{self.url}/v1/search", params={"slot": slot}, json=body, timeout=30, headers=self._headers())
        return [r["product_id"] for r in self._admitted(answer).json()["results"]]

    def poll_aliases(self, again: str = "") -> None:
        """Makes the replica poll the aliases now, and load version `again` if it failed to. Raises httpx.HTTPError on failure."""
        asked = {"again": again} if again else {}
        self._admitted(client().post(f"{self.url}/v1/follow", params=asked, timeout=10, headers=self._headers()))

    def samples(self, limit: int) -> list[SampledQuery]:
        """The newest sampled queries. Raises httpx.HTTPError on failure."""
        answer = client().get(f"{self.url}/v1/samples", params={"limit": limit}, timeout=30, headers=self._headers())
        return [
            SampledQuery(
                s["kind"], s["fingerprint"], s["photo_sha256"], np.frombuffer(base64.b64decode(s["vector"]), "<f4").astype(np.float32),
                base64.b64decode(s["photo"]) if s["photo"] is not None else None,
                Box.model_validate(s["box"]) if s.get("box") else None,
            )
            for s in self._admitted(answer).json()["samples"]
        ]  # fmt: skip

    def metrics(self) -> str:
        """Metrics in Prometheus's text format. Raises httpx.HTTPError when it does not respond."""
        return client().get(f"{self.url}/metrics", timeout=5).raise_for_status().text

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def _admitted(self, answer: httpx.Response) -> httpx.Response:
        """The response. Raises SettingsError for a rejected token, HTTPError for any other error status."""
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise SettingsError(token_error(self.url, self.token))
        return answer.raise_for_status()


def token_error(url: str, token: str) -> str:
    """What to do about a 401 of a replica."""
    what = "does not take this admin token" if token else "asks for the admin token, and none is set here"
    return f"the replica {url} {what}: set VITRINE_ADMIN_TOKEN to the replica's own (looked for in {setting_sources(Settings.load().home)})"


def client() -> httpx.Client:
    """This process's HTTP client: it pools connections and must not be shared across a fork."""
    return _client(os.getpid())


@cache
def _client(process: int) -> httpx.Client:
    return httpx.Client(trust_env=False)


def for_each_replica(replicas: Sequence[Replica], ask: Callable[[Replica], T]) -> list[T]:
    """Calls `ask` for all replicas concurrently; results in order."""
    if not replicas:
        return []
    with ThreadPoolExecutor(min(len(replicas), AT_ONCE)) as pool:
        return list(pool.map(ask, replicas))


def poll_aliases(replicas: Sequence[Replica], again: str = "") -> None:
    """Makes every replica poll the aliases now, and load version `again` if it failed to. Unreachable ones do at a later poll."""

    def tell(replica: Replica) -> None:
        with suppress(httpx.HTTPError, SettingsError):
            replica.poll_aliases(again)

    for_each_replica(replicas, tell)


def answering(replicas: Sequence[Replica]) -> list[Replica]:
    """The replicas that answer now."""
    found = for_each_replica(replicas, lambda r: _reason(r, lambda state: ""))
    return [replica for replica, why in zip(replicas, found, strict=True) if not why]


def wait_for(
    replicas: Sequence[Replica], what: str, holds: Callable[[dict[str, Any]], str], limit_s: float, silent_s: float = math.inf
) -> float:
    """Waits until `holds` returns "" for every replica's state; returns the seconds it took.

    `holds` answers why a state is not there yet. Raises ServiceAway naming every straggler with its reason (`stragglers`).
    """
    took, late = stragglers(replicas, holds, limit_s, silent_s)
    if late:
        raise not_followed(what, replicas, took, late)
    return took


def not_followed(what: str, replicas: Sequence[Replica], took_s: float, late: Mapping[str, str]) -> ServiceAway:
    """The error that names the replicas that did not follow, with their reasons."""
    named = "; ".join(f"{url}: {why}" for url, why in late.items())
    return ServiceAway(f"{what}: {len(late)} of {len(replicas)} replicas did not follow within {took_s:.0f} s: {named}")


def stragglers(
    replicas: Sequence[Replica], holds: Callable[[dict[str, Any]], str], limit_s: float, silent_s: float = math.inf
) -> tuple[float, dict[str, str]]:
    """Waits until `holds` returns "" for every replica's state; gives the seconds it took, and by url why a replica did not follow.

    The wait ends early when a reason starts with "failed", and when all that is left has not answered for `silent_s` seconds.
    """
    began = time.monotonic()
    heard = {replica.url: began for replica in replicas}
    while True:
        reasons = for_each_replica(replicas, lambda r: _reason(r, holds))
        waiting = {r.url: why for r, why in zip(replicas, reasons, strict=True) if why}
        now = time.monotonic()
        heard |= {url: now for url in heard if not waiting.get(url, "").startswith(NO_ANSWER)}
        given_up = all(why.startswith(NO_ANSWER) and now - heard[url] >= silent_s for url, why in waiting.items())
        if given_up or now - began > limit_s or any(why.startswith("failed") for why in waiting.values()):
            return min(now - began, limit_s), waiting
        time.sleep(POLL_S)


def _reason(replica: Replica, holds: Callable[[dict[str, Any]], str]) -> str:
    try:
        return holds(replica.version())
    except httpx.HTTPError as error:
        return f"{NO_ANSWER} ({type(error).__name__})"
