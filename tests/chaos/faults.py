"""The faults: each part killed, paused, cut off and slowed, S3 that errs, disks that are full."""

import os
import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import get_args

from tests.chaos.drill import DEADLINE_MS, Drill, Fault, Kind

Act = Callable[[Drill], None]
NGINX_WAITS_MS = 10_000.0
"""proxy_read_timeout of docker/nginx/nginx.conf: then it asks the other replica."""
PAUSED_S = 12.0
"""Longer than that, so that what a paused replica holds is asked again."""
SERVICES = ("mlflow", "postgres", "redis", "s3")
KINDS: tuple[Kind, ...] = get_args(Kind)
ANSWERED = "every search is answered"
RETRIED = "the same run, tried again, is done; what was live goes on"
ANSWERED_AND_RETRIED = f"{ANSWERED}; {RETRIED}"


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


def server_faults(
    part: str,
    service: str,
    promised: str,
    kinds: Collection[Kind] = KINDS,
    delay_s: float = 0.2,
    paused_s: float = 8,
    step: str = "drain_changes",
) -> list[Fault]:
    """A server killed and started again, paused, cut off, slowed, those of `kinds`, once `step` is done."""
    stop, go_on = send(service, signal.SIGSTOP), send(service, signal.SIGCONT)
    slower, as_before = slow(service, delay_s), slow(service, 0)
    found = [
        Fault(part, "kill", "killed for 5 s", kill(service), start(service), promised),
        Fault(part, "pause", f"paused for {paused_s:g} s", stop, go_on, promised, lasts_s=paused_s),
        Fault(part, "cut", "cut off for 5 s", cut(service), mend(service), promised),
        Fault(part, "slow", f"{delay_s:g} s slower each way", slower, as_before, promised, lasts_s=10),
    ]
    return [replace(fault, step=step) for fault in found if fault.kind in kinds]


def of_services() -> list[Fault]:
    """What the pipeline and the replicas need. S3 is not killed: it would come back empty."""
    redis = f"{ANSWERED}: a cache that is away or slow is a miss; the hour waits for nothing"
    found = [
        *server_faults("MLflow", "mlflow", f"{ANSWERED}, from what replicas hold; {RETRIED}"),
        *server_faults("PostgreSQL", "postgres", f"{ANSWERED}; {RETRIED}; no change is lost or taken twice", step=""),
        *server_faults("Redis", "redis", redis, step="embed_changes"),
        *server_faults("S3", "s3", ANSWERED_AND_RETRIED, ("pause", "cut", "slow"), delay_s=0.05, step=""),
        Fault(
            "MLflow, PostgreSQL, Redis and S3", "cut", "cut off for 5 s", cut_everything, mend_everything, ANSWERED_AND_RETRIED
        ),
    ]
    for what, errors in (("503 to a tenth", "503"), ("resets for a tenth", "reset"), ("half of a tenth of answers", "truncated")):
        found.append(s3_errors(what, errors))
    return [
        *found,
        replace(s3_errors("503, resets and half answers together, in a night", "503", "reset", "truncated"), story="night"),
    ]


def s3_errors(what: str, *errors: str) -> Fault:
    """A tenth of the requests to S3 fail until the first attempt is over."""
    begin, end = damage("s3", 0.1, *errors), damage("s3", 0.0)
    return Fault("S3", "damage", what, begin, end, ANSWERED_AND_RETRIED, lasts_s=None, step="")


def of_serving() -> list[Fault]:
    """What answers searches, at fault while a promotion waits for it."""
    found: list[Fault] = []
    for part, service in (("one replica", "serving-1"), ("gateway", "gateway")):
        for fault in server_faults(part, service, f"{ANSWERED}, by the other; {RETRIED}", paused_s=PAUSED_S, step="acknowledge"):
            most_ms = NGINX_WAITS_MS + DEADLINE_MS if fault.kind == "pause" else DEADLINE_MS
            found.append(replace(fault, slowest_ms=most_ms))
    found += server_faults("shard", "shard", f"{ANSWERED}, by the replica; {RETRIED}", ["kill"], step="acknowledge")
    for fault in server_faults("load balancer", "nginx", "", paused_s=4):
        away = fault.kind in ("kill", "cut")
        told = "none while it is away, every one after" if away else f"{ANSWERED}, late"
        found.append(replace(fault, promised=told, answers=not away, attempts=1, slowest_ms=2 * DEADLINE_MS))
    return found


def of_worker() -> list[Fault]:
    """The process that runs the steps, in the middle of one."""
    hour = Fault(
        "worker", "kill", "killed in an hour", kill_worker, nothing, ANSWERED_AND_RETRIED, lasts_s=0, step="embed_changes"
    )
    stop, go_on = signal_worker(signal.SIGSTOP), signal_worker(signal.SIGCONT)
    promotion = replace(hour, what="killed in a promotion", step="publish_candidate", after_s=1.0)
    return [
        hour,
        promotion,
        replace(hour, what="killed in a night", step="embed", story="night"),
        replace(promotion, kind="pause", what="paused for 15 s in a promotion", begin=stop, end=go_on, lasts_s=15),
    ]


def of_disks() -> list[Fault]:
    """Disks that are full until the first attempt is over."""
    worker = Fault("worker", "fill", "disk full", fill("worker"), empty("worker"), ANSWERED_AND_RETRIED, lasts_s=None, step="")
    replica = replace(worker, part="one replica", begin=fill("serving-1"), end=empty("serving-1"), step="acknowledge")
    return [worker, replica]


def all_faults(disks: bool) -> list[Fault]:
    """Every fault, in the order of KINDS, so that those that last the whole first attempt (damage, fill) are at the end; those of full
    disks only where there are such disks."""
    none = Fault("nothing", "none", "an hour", nothing, nothing, f"{ANSWERED}; one attempt", attempts=1, lasts_s=0)
    found = [none, *of_worker(), *of_services(), *of_serving(), *(of_disks() if disks else [])]
    return sorted(found, key=lambda fault: KINDS.index(fault.kind))
