"""Versions flip under load: ten times in a minute, each with another encoder; and a corrupt candidate is offered.

    python -m tests.benchmarks.bench_flips [--seconds 60] [--flips 10] [--clients 16] [--engine pgvector] [--out build/bench]

`vitrine-serve` in a process of its own, the load generator another: clients that search by photo without a pause. Asked for: no
request fails, no answer mixes versions (each is compared with what the version it names answers when nothing else happens), and
the p99 during the flips is at most twice the p99 before. With `--engine` the vectors of every version lie in a collection of a real
server of that engine, started here. Writes flips.json.
"""

import argparse
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from serving.contract.manifest import SLOTS
from tests.benchmarks.bench_engines import SERVERS
from tests.benchmarks.bench_serving import replica
from tests.benchmarks.editions import CORRUPT, editions, in_engine, point
from tests.benchmarks.market import Market
from tests.load import MARK, Load, Shots, fire, photo_request

TOKEN = "token of a benchmark"


class Watched:
    """A replica under the hand of a promotion: aliases are moved, its own report is waited for."""

    def __init__(self, url: str, release: Path) -> None:
        self.release, self.client = release, httpx.Client(base_url=url, trust_env=False, timeout=30)
        self.live_slot = "blue"

    def state(self) -> dict[str, Any]:
        return self.client.get("/v1/version").json()

    def load(self, version: str, wanted: tuple[str, ...] = ("ready",)) -> str:
        """Points the idle slot at a version; gives the state it comes to."""
        slot = SLOTS[1 - SLOTS.index(self.live_slot)]
        point(self.release, **{slot: version})
        until = time.monotonic() + 120
        while time.monotonic() < until:
            held = self.state()["slots"][slot]
            if held["version"] == version and held["state"] in wanted:
                return str(held["state"])
            time.sleep(0.05)
        raise TimeoutError(f"version {version} is not {wanted} in {slot}: {self.state()}")

    def flip(self, version: str) -> float:
        """Loads a version and moves `live`; gives when the replica said that it serves it (epoch seconds)."""
        self.load(version)
        point(self.release, live=version)
        until = time.monotonic() + 60
        while self.state()["live"]["version"] != version:
            if time.monotonic() > until:
                raise TimeoutError(f"version {version} did not go live")
            time.sleep(0.02)
        self.live_slot = SLOTS[1 - SLOTS.index(self.live_slot)]
        return time.time()


def expected(url: str, asked: list[bytes], versions: list[str], watched: Watched) -> dict[tuple[int, str], str]:
    """The digest of every request's answer by every version, asked when nothing else happens."""
    found: dict[tuple[int, str], str] = {}
    for version in versions:
        watched.flip(version)
        number = 0
        while number < len(asked):
            shots = fire(url, asked[number:], 1, 3.0)
            for request, digest in zip(shots.request.tolist(), shots.digest.tolist(), strict=True):
                found[(number + request, version)] = digest
            number += min(len(shots.request), len(asked) - number)
    return found


def mixed(shots: Shots, known: dict[tuple[int, str], str]) -> int:
    """Answers that are not what the version they name answers, or that name an encoder of another one."""
    rows = zip(
        shots.request[shots.ok].tolist(),
        shots.version[shots.ok].tolist(),
        shots.encoder[shots.ok].tolist(),
        shots.digest[shots.ok].tolist(),
        strict=True,
    )
    return sum(version != encoder or known[(request, version)] != digest for request, version, encoder, digest in rows)


def run(made: Market, out: Path, seconds: float, flips: int, clients: int, photos: int, **settings: str) -> dict[str, Any]:
    asked = [photo_request(p + MARK, {"k": "20"}) for p in made.photos[:photos]]
    versions = [str(n) for n in range(1, flips + 2)]
    with replica(made.release, out / "flips.log", ADMIN_TOKEN=TOKEN, POLL_S="0.1", QUEUE="256", **settings) as (url, _):
        watched = Watched(url, made.release)
        known = expected(url, asked, versions[1:], watched) | expected(url, asked, versions[:1], watched)
        before = fire(url, asked, clients, max(5.0, seconds / 3))
        with Load(url, asked, clients, seconds) as load:
            time.sleep(1.0)
            began, at = time.monotonic(), []
            for number, version in enumerate(versions[1:], start=1):
                wait_s = began + number * 0.85 * seconds / flips - time.monotonic()
                time.sleep(max(0.0, wait_s))
                at.append(watched.flip(version))
            during = load.wait()
        with Load(url, asked, clients, max(5.0, seconds / 6)) as load:
            point(made.release, live=CORRUPT)
            state = watched.load(CORRUPT, ("ready", "failed"))
            offered = load.wait()
        told = watched.state()
        reason = next(s["reason"] for s in told["slots"].values() if s["version"] == CORRUPT)
        point(made.release, blue="1", green="", live="1")
    return {
        "requests": len(during.status), "failed": during.failed, "mixed": mixed(during, known) + mixed(before, known),
        "versions_seen": sorted(set(during.version[during.ok].tolist()), key=int), "flips": len(at),
        "qps_before": before.qps, "qps": during.qps,
        "p50_before": before.ms(50), "p99_before": before.ms(99), "p50": during.ms(50), "p99": during.ms(99),
        "most": float(np.max(during.took_ms)),
        "corrupt": {
            "state": state, "reason": reason, "live": told["live"]["version"], "failed": offered.failed, "mixed": mixed(offered, known),
            "requests": len(offered.status), "versions_seen": sorted(set(offered.version[offered.ok].tolist())),
        },
    }  # fmt: skip


def verdicts(found: dict[str, Any], flips: int) -> dict[str, bool]:
    bad = found["corrupt"]
    return {
        "every flip was seen by clients": len(found["versions_seen"]) == flips + 1,
        "no request failed": found["failed"] == 0,
        "no answer mixed versions": found["mixed"] == 0,
        "p99 during flips is at most twice the p99 before": found["p99"] <= 2 * found["p99_before"],
        "the corrupt candidate failed with its reason": bad["state"] == "failed" and "corrupt" in bad["reason"],
        "it never went live, and nothing failed meanwhile": (
            bad["failed"] == 0 and bad["mixed"] == 0 and bad["versions_seen"] == [bad["live"]] == [str(flips + 1)]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--flips", type=int, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--engine", choices=["faiss", *SERVERS], default="faiss")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = editions(args.out, args.flips + 1, args.rows)
    with ExitStack() as stack:
        settings = {}
        if args.engine != "faiss":
            endpoint = stack.enter_context(SERVERS[args.engine]()).endpoint
            made = in_engine(made, args.engine, endpoint.patient(), args.out / f"editions-{args.engine}")
            settings = {"ENGINE_ADDRESS": endpoint.address}
        print(
            f"{args.rows} x 512 in {args.engine}, {args.clients} clients, {args.seconds:g} s; load {psutil.getloadavg()[0]:.1f}"
        )
        found = run(made, args.out, args.seconds, args.flips, args.clients, args.photos, **settings)
    print(
        f"{found['requests']} requests, {found['failed']} failed, {found['mixed']} mixed; versions seen {found['versions_seen']}"
    )
    print(f"{'':12} {'QPS':>8} {'p50 ms':>8} {'p99 ms':>8}")
    print(f"{'before':12} {found['qps_before']:8.1f} {found['p50_before']:8.1f} {found['p99_before']:8.1f}")
    print(f"{'flipping':12} {found['qps']:8.1f} {found['p50']:8.1f} {found['p99']:8.1f}   the slowest {found['most']:.0f}")
    print(f"corrupt candidate: {found['corrupt']['state']}: {found['corrupt']['reason']}")
    told = verdicts(found, args.flips)
    for sentence, held in told.items():
        print(f"  {'holds        ' if held else 'DOES NOT HOLD'} {sentence}")
    (args.out / "flips.json").write_text(json.dumps(found | {"verdicts": told}, indent=1))


if __name__ == "__main__":
    main()
