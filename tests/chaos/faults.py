"""The faults: each part killed, paused, cut off and slowed, S3 that errs, disks that are full."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tests.chaos.drill import DEADLINE_MS, Drill, Fault

Act = Callable[[Drill], None]
NGINX_WAITS_MS = 10_000.0
"""proxy_read_timeout of docker/nginx/nginx.conf: then it asks the other replica."""
PAUSED_S = 12.0
"""Longer than that, so that what a paused replica holds is asked again."""
SERVICES = ("mlflow", "postgres", "redis", "s3")
CALM = "every search is answered"
SAME = "the same run, tried again, is done; what was live goes on"
AGAIN = f"{CALM}; {SAME}"


def nothing(drill: Drill) -> None:
    pass


def kill_worker(drill: Drill) -> None:
    assert drill.process is not None
    drill.process.kill()


def signal_worker(number: int) -> Act:
    def send(drill: Drill) -> None:
        assert drill.process is not None
        assert drill.process.pid is not None
        os.kill(drill.process.pid, number)

    return send


def kill(service: str) -> Act:
    return lambda drill: drill.stack.kill(service)


def start(service: str) -> Act:
    return lambda drill: drill.stack.start(service)


def send(service: str, number: int) -> Act:
    def sent(drill: Drill) -> None:
        for process in drill.stack.processes(service):
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    return sent


def cut(service: str) -> Act:
    return lambda drill: drill.stack.relays[service].cut()


def mend(service: str) -> Act:
    return lambda drill: drill.stack.relays[service].start()


def slow(service: str, seconds: float) -> Act:
    return lambda drill: setattr(drill.stack.relays[service], "delay_s", seconds)


def damage(service: str, share: float, *kinds: str) -> Act:
    def begin(drill: Drill) -> None:
        relay = drill.stack.relays[service]
        relay.faults, relay.share = kinds, share

    return begin


def fill(disk: str) -> Act:
    """Takes all of a disk but one block."""

    def begin(drill: Drill) -> None:
        place = drill.stack.disks[disk]
        free = os.statvfs(place)
        with suppress(OSError), _ballast(place).open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, (free.f_bavail - 1) * free.f_frsize)

    return begin


def empty(disk: str) -> Act:
    return lambda drill: _ballast(drill.stack.disks[disk]).unlink(missing_ok=True)


def _ballast(disk: Path) -> Path:
    return disk / "ballast"


def cut_everything(drill: Drill) -> None:
    for service in SERVICES:
        drill.stack.relays[service].cut()


def mend_everything(drill: Drill) -> None:
    for service in SERVICES:
        drill.stack.relays[service].start()


def four(
    part: str, service: str, promised: str, delay_s: float = 0.2, paused_s: float = 8, step: str = "drain_changes"
) -> list[Fault]:
    """A server killed and started again, paused, cut off, slowed, once `step` is done."""
    stop, go_on = send(service, signal.SIGSTOP), send(service, signal.SIGCONT)
    found = [
        Fault(part, "killed for 5 s", kill(service), start(service), promised),
        Fault(part, f"paused for {paused_s:g} s", stop, go_on, promised, lasts_s=paused_s),
        Fault(part, "cut off for 5 s", cut(service), mend(service), promised),
        Fault(part, f"{delay_s:g} s slower each way", slow(service, delay_s), slow(service, 0), promised, lasts_s=10),
    ]
    return [replace(fault, step=step) for fault in found]


def of_services() -> list[Fault]:
    """What the pipeline and the replicas need."""
    found = [
        *four("MLflow", "mlflow", f"{CALM}, from what replicas hold; {SAME}"),
        *four("PostgreSQL", "postgres", f"{CALM}; {SAME}; no change is lost or taken twice", step=""),
        *four(
            "Redis", "redis", f"{CALM}: a cache that is away or slow is a miss; the hour waits for nothing", step="embed_changes"
        ),
        *four("S3", "s3", AGAIN, delay_s=0.05, step="")[1:],
        Fault("all four", "cut off for 5 s", cut_everything, mend_everything, AGAIN),
    ]
    for what, kind in (("503 to a tenth", "503"), ("resets for a tenth", "reset"), ("half of a tenth of answers", "truncated")):
        found.append(Fault("S3", what, damage("s3", 0.1, kind), damage("s3", 0.0), AGAIN, lasts_s=None, step=""))
    every = damage("s3", 0.1, "503", "reset", "truncated")
    return [*found, Fault("S3", "all three in a night", every, damage("s3", 0.0), AGAIN, lasts_s=None, step="", story="night")]


def of_serving() -> list[Fault]:
    """What answers searches, at fault while a promotion waits for it."""
    found = []
    for part, service in (("one replica", "serving-1"), ("gateway", "gateway")):
        for fault in four(part, service, f"{CALM}, by the other; {SAME}", paused_s=PAUSED_S, step="acknowledge"):
            most_ms = NGINX_WAITS_MS + DEADLINE_MS if "paused" in fault.what else DEADLINE_MS
            found.append(replace(fault, slowest_ms=most_ms))
    shard = kill("shard"), start("shard")
    found.append(Fault("shard", "killed for 5 s", *shard, f"{CALM}, by the replica; {SAME}", step="acknowledge"))
    for fault in four("load balancer", "nginx", "", paused_s=4):
        away = "killed" in fault.what or "cut" in fault.what
        told = "none while it is away, every one after" if away else f"{CALM}, late"
        found.append(replace(fault, promised=told, answers=not away, attempts=1, slowest_ms=2 * DEADLINE_MS))
    return found


def all_faults(disks: bool) -> list[Fault]:
    """Every fault, by kind, those that last longest at the end; those of full disks only where there are such disks."""
    pause = signal_worker(signal.SIGSTOP), signal_worker(signal.SIGCONT), AGAIN
    found = [
        Fault("nothing", "an hour", nothing, nothing, f"{CALM}; one attempt", attempts=1, lasts_s=0),
        Fault("worker", "killed in an hour", kill_worker, nothing, AGAIN, lasts_s=0, step="embed_changes"),
        Fault("worker", "killed in a promotion", kill_worker, nothing, AGAIN, lasts_s=0, step="publish_candidate", after_s=1.0),
        Fault("worker", "killed in a night", kill_worker, nothing, AGAIN, lasts_s=0, step="embed", story="night"),
        Fault("worker", "paused for 15 s in a promotion", *pause, lasts_s=15, step="publish_candidate", after_s=1.0),
        *of_services(),
        *of_serving(),
    ]
    if disks:
        found += [
            Fault("worker", "disk full", fill("worker"), empty("worker"), AGAIN, lasts_s=None, step=""),
            Fault("one replica", "disk full", fill("serving-1"), empty("serving-1"), AGAIN, lasts_s=None, step="acknowledge"),
        ]
    kinds = [fault.what.split()[0] for fault in found]
    return sorted(found, key=lambda fault: (fault.what[0].isdigit(), kinds.index(fault.what.split()[0])))
