"""The scaler of docker/kubernetes over real replicas: a load that rises and falls is carried, and nothing fails while replicas go."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tasks.capacity.service_times import synthetic_photos
from tests.e2e import autoscaling
from tests.e2e.autoscaling import Loop, running
from tests.load import MARK, Load, Shots, fire, photo_request
from tests.releases import make_release
from tests.running import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(autoscaling.missing()), reason=f"not there: {', '.join(autoscaling.missing())}"),
]
CLIENTS = 48
STEPS = [(0.25, 10.0), (1.1, 30.0), (2.2, 45.0), (0.25, 200.0)]
"""Shares of what one replica carries, and for how many seconds; the last one until one replica is left, at most."""
TOP = max(STEPS)[0]
BUDGET_MS = 200
COLUMNS = "{:>16} {:>10} {:>9} {:>7} {:>8} {:>8} {:>9}"


@pytest.fixture
def front(tmp_path: Path) -> Iterator[tuple[str, Loop]]:
    make_release(tmp_path, products=200)
    with running(tmp_path / "release", tmp_path) as found:
        yield found


def settled(shots: Shots, began_s: float, seconds: float) -> np.ndarray:
    """Which were sent in the last third of their step."""
    return shots.at_s >= began_s + seconds * 2 / 3


def test_replicas_follow_the_load_and_no_request_fails(front: tuple[str, Loop], capsys: pytest.CaptureFixture[str]) -> None:
    url, loop = front
    asked = [photo_request(photo + MARK) for photo in synthetic_photos(24, seed=7)]
    one_qps = fire(url, asked, clients=2, seconds=8).qps
    alone = fire(url, asked, CLIENTS, seconds=8, rate=TOP * one_qps)
    lines, failed, answered, top_ms = [], 0, 0, 0.0
    with loop:
        for share, seconds in STEPS:
            began = time.time()
            with Load(url, asked, CLIENTS, seconds, rate=share * one_qps) as load:
                if (share, seconds) == STEPS[-1]:
                    until(lambda: loop.fleet.wanted == 1, "the load of the night asks for one replica again", seconds)
                    for thread in loop.fleet.leaving:
                        thread.join()
                    seconds = time.time() - began
                    shots = load.stop()
                else:
                    shots = load.wait()
            least, most = loop.replicas(began, began + seconds)
            p99, p99_settled = shots.ms(99), shots.ms(99, settled(shots, began, seconds))
            top_ms = p99_settled if share == TOP else top_ms
            failed, answered = failed + shots.failed, answered + int(shots.ok.sum())
            figures = f"{share:.2f} x {one_qps:.0f}/s", f"{least}-{most}", len(shots.status), shots.failed
            lines.append(COLUMNS.format(*figures, *(f"{ms:.0f}" for ms in (shots.ms(50), p99, p99_settled))))
    most = max(look.ready for look in loop.looks)
    with capsys.disabled():
        print(f"\n{autoscaling.QUOTA} of a core each by {autoscaling.quota_file()}; budget {BUDGET_MS} ms")
        print(COLUMNS.format("load", "replicas", "requests", "failed", "p50 ms", "p99 ms", "settled"))
        print("\n".join(lines))
        print(f"one replica at {TOP} x: p50 {alone.ms(50):.0f}, p99 {alone.ms(99):.0f} ms, {alone.failed} failed")
        print(f"{answered} answered, {failed} failed; {len(loop.fleet.ended)} replicas went: {loop.fleet.ended}")
    assert failed == 0
    assert most == autoscaling.MOST
    assert top_ms < 0.5 * alone.ms(99), "once it has settled, the load that one replica drowns in is carried"
    assert all(code == -15 for code in loop.fleet.ended), "each ended by itself, in time"
