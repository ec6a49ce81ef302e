"""Airflow's own traps on the real scheduler: versions published while a promotion waits for a person or its DAG is paused, a restart
of everything in between, and a supervisor that dies while Spark embeds.
"""

import os
import signal
from contextlib import suppress

import psutil
import pytest

from tasks.registry import INDEX_MODEL
from tasks.release.promotion.blue_green import LIVE_AT
from tasks.release.promotion.proposal import SUPERSEDED
from tests.e2e.stack import Stack, until
from tests.e2e.test_releases_over_days import answer, asked, shop

__all__ = ["shop"]

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(3000)]


def pause(stack: Stack, dag: str, paused: bool) -> None:
    stack.airflow.call("PATCH", f"/dags/{dag}", json={"is_paused": paused})


def published(stack: Stack, number: int) -> str:
    """One more product, and refresh_index; gives the version that is the candidate then."""
    before = stack.aliases()["candidate"]
    stack.catalogue.change({number: number})
    run_id, state = stack.run("refresh_index")
    assert state == "success", stack.states("refresh_index", run_id)
    assert stack.aliases()["candidate"] != before
    return stack.aliases()["candidate"]


def restart(stack: Stack, *names: str) -> None:
    """SIGKILL to all of these services at once, as a machine that goes away, and a new start over the same databases."""
    family = []
    for name in names:
        record = stack.supervisor._record(name)
        assert record is not None
        root = psutil.Process(record["pid"])
        family += [root, *root.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=20)
    services = [s for s in stack.services if s.name in names]
    for service in services:
        stack.supervisor._reap(service.name)
        stack.supervisor.start(service)
    for service in services:
        stack.supervisor.wait(service)


def tag(stack: Stack, version: str, name: str) -> str:
    return stack.registry.version(INDEX_MODEL, version).tags.get(name, "")


def test_candidates_published_meanwhile_are_proposed_newest_first_across_pauses_and_restarts(shop: Stack) -> None:
    shop.quiet()
    live = shop.aliases()["live"]
    pause(shop, "promote_index", True)
    dropped, waiting = published(shop, 400), published(shop, 401)
    assert tag(shop, dropped, SUPERSEDED) == f"by version {waiting}, before it was live"
    pause(shop, "promote_index", False)
    run_id = asked(shop)
    assert shop.airflow.result("promote_index", run_id, "choose_slot")["version"] == waiting, "its event came during the pause"

    restart(shop, "airflow")
    assert shop.states("promote_index", run_id)["approve"] == "awaiting_input"
    skipped, newest = published(shop, 402), published(shop, 403)
    assert shop.aliases()["live"] == live, "nobody answered yet"

    assert shop.finished("promote_index", run_id) == "success"
    states = shop.states("promote_index", run_id)
    assert (states["approve"], states["flip"], states["bake"], states["settle"]) == ("success", "skipped", "skipped", "success")
    superseded = f"version {waiting} was superseded by version "
    until(lambda: superseded in (shop.airflow.run("promote_index", run_id)["note"] or ""), "the run's note says why")

    shop.goes_live(newest)  # by the run that the events meanwhile start, which Airflow gives only the first of them
    assert [tag(shop, v, LIVE_AT) != "" for v in (dropped, waiting, newest)] == [False, False, True]
    assert tag(shop, waiting, SUPERSEDED).startswith("by version ")
    assert tag(shop, newest, SUPERSEDED) == ""
    # On a slow machine the question ends, and the next run begins, before the last one is published.
    assert (tag(shop, skipped, LIVE_AT) == "") == (tag(shop, skipped, SUPERSEDED) != "")
    assert shop.servable() == shop.catalogue.ids


def test_a_question_survives_a_restart_of_everything_and_its_yes_counts(shop: Stack) -> None:
    shop.quiet()
    previous = shop.aliases()["previous"]
    run_id = asked(shop, previous)
    restart(shop, *(service.name for service in shop.services))
    answer(shop, run_id, "Approve")
    assert shop.finished("promote_index", run_id) == "success"
    assert shop.serving() == [previous] * 2
    assert shop.run("rollback_index")[1] == "success"


def test_nothing_of_a_task_outlives_its_supervisor(shop: Stack) -> None:
    """The process that watches embed is killed: the task, Spark's JVM and its workers end before any retry begins."""
    shop.quiet()
    shop.crown(11)
    run_id = shop.airflow.trigger("rebuild_index")
    found: list[psutil.Process] = []
    until(lambda: found.extend(_spark(shop)) or found != [], "Spark embeds")
    java = found[0]
    supervisor = next(p for p in java.parents() if "LocalExecutor" in " ".join(p.cmdline()))
    family = supervisor.children(recursive=True)
    assert java in family
    os.kill(supervisor.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    shop.airflow.call("PATCH", f"/dags/rebuild_index/dagRuns/{run_id}", json={"state": "failed"})


def _spark(stack: Stack) -> list[psutil.Process]:
    """The JVMs below Airflow that have started Python workers; Spark's launcher, which soon ends, has none."""
    record = stack.supervisor._record("airflow")
    assert record is not None
    found = []
    for process in psutil.Process(record["pid"]).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name() == "java" and process.children():
                found.append(process)
    return found
