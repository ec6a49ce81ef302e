"""Asking several shards at once: late, silent, busy and broken ones, by sockets whose answers a test decides."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from serving.app import create_app
from serving.metrics import Metrics
from serving.settings import ServingSettings
from serving.shards.asking import Asking, Refusal
from serving.shards.fleet import Fleet, addresses_of
from serving.shards.wire import SEARCH, pack, unpack
from tests.running import until


class Scripted:
    """A shard process whose answers a test decides: `delay_s` before each, `status`, and what it says it holds.

    Its answer is its url, or `body` where that is given.
    """

    def __init__(self, delay_s: float = 0.0, status: int = 200, shards: tuple[int, ...] = (0,)) -> None:
        self.delay_s, self.status, self.shards = delay_s, status, shards
        self.body = b""
        self.asked = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(accepted,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # whoever asked may have gone away, as one does who has heard another's answer
            while data := connection.recv(65536):
                if data.startswith(b"GET"):
                    told = {"shards": self.shards, "versions": {"1": {"state": "ready", "digest": "d", "reason": ""}}}
                    body, status = json.dumps(told).encode(), 200
                else:
                    self.asked += 1
                    time.sleep(self.delay_s)
                    body, status = self.body or self.url.encode(), self.status
                connection.sendall(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)


@contextmanager
def fleet(*scripted: Scripted, probe_s: float = 0.05) -> Iterator[Fleet]:
    found = Fleet(addresses_of(tuple(s.url for s in scripted), ""), probe_s)
    found.follow()
    try:
        until(lambda: all(b.up for b in found.backends.values()))
        yield found
    finally:
        found.close()
        for one in scripted:
            one.close()


def ask(asking: Asking, shards: tuple[int, ...] = (0,), latest: float | None = None) -> dict[int, bytes]:
    return asking.ask(SEARCH, "1|d", list(shards), lambda shard, left_s: b"?", url_in, latest)


def url_in(body: bytes) -> bytes:
    if not body.startswith(b"http://"):
        raise ValueError("no url")
    return body


def test_a_late_answer_is_asked_for_again_elsewhere_and_the_first_counts() -> None:
    fast, slow = Scripted(), Scripted()
    with fleet(fast, slow) as found:
        asking = Asking(found, Metrics(), timeout_s=5.0, hedges=1.0)
        for _ in range(64):
            ask(asking)
        slow.delay_s = 1.0
        for _ in range(12):
            began = time.monotonic()
            assert ask(asking) == {0: fast.url.encode()}
            assert time.monotonic() - began < 0.9
        assert asking.metrics.shard_asked.labels("0", "hedge")._value.get() > 0
        assert all(b.outstanding == 0 for b in found.backends.values())


def test_without_a_budget_nothing_is_asked_twice() -> None:
    one, two = Scripted(delay_s=0.03), Scripted(delay_s=0.03)
    with fleet(one, two) as found:
        asking = Asking(found, Metrics(), timeout_s=5.0, hedges=0.0)
        for _ in range(40):
            ask(asking)
        assert one.asked + two.asked == 40


def test_a_silent_shard_costs_its_timeout_once_and_the_others_answer() -> None:
    silent, well = Scripted(delay_s=3.0), Scripted(shards=(1,))
    with fleet(silent, well, probe_s=60) as found:  # no probe lifts it again within this test
        asking = Asking(found, Metrics(), timeout_s=0.3, hedges=0.0)
        assert ask(asking, (0, 1)) == {1: well.url.encode()}
        began = time.monotonic()
        assert ask(asking, (0, 1)) == {1: well.url.encode()}
        assert time.monotonic() - began < 0.25
        assert asking.metrics.shard_asked.labels("0", "lost")._value.get() == 2


def test_a_request_that_has_less_time_than_a_shard_gets_tells_nothing_of_the_shard() -> None:
    slow = Scripted(delay_s=0.5)
    with fleet(slow) as found:
        asking = Asking(found, Metrics(), timeout_s=5.0, hedges=0.0)
        assert ask(asking, latest=time.monotonic() + 0.05) == {}
        assert next(iter(found.backends.values())).up


@pytest.mark.parametrize("status", [503, 504, 409])
def test_who_is_too_busy_or_lacks_the_version_is_passed_over(status: int) -> None:
    busy, free = Scripted(status=status), Scripted()
    with fleet(busy, free) as found:
        asking = Asking(found, Metrics(), timeout_s=5.0, hedges=0.0)
        assert all(ask(asking) == {0: free.url.encode()} for _ in range(10))
        assert busy.asked >= 1


def test_a_question_that_is_wrong_is_not_asked_elsewhere() -> None:
    with fleet(Scripted(status=422), Scripted(status=422)) as found:
        asking = Asking(found, Metrics(), timeout_s=5.0, hedges=0.0)
        with pytest.raises(Refusal, match="http://"):
            ask(asking)
        assert all(b.outstanding == 0 for b in found.backends.values())


def test_an_answer_that_is_none_is_a_failure_of_the_process_and_another_is_asked() -> None:
    wrong, well = Scripted(), Scripted()
    with fleet(wrong, well, probe_s=60) as found:
        wrong.body = b"junk"
        asking = Asking(found, Metrics(), timeout_s=5.0, hedges=0.0)
        for _ in range(20):
            assert ask(asking) == {0: well.url.encode()}
        assert wrong.asked == 1
        assert [b.why for b in found.backends.values() if not b.up] == ["no url"]
        assert all(b.outstanding == 0 for b in found.backends.values())


def test_a_shard_of_which_only_wrong_answers_come_is_lost() -> None:
    wrong, well = Scripted(), Scripted(shards=(1,))
    with fleet(wrong, well, probe_s=60) as found:
        wrong.body = b"junk"
        asking = Asking(found, Metrics(), timeout_s=5.0, hedges=0.0)
        assert ask(asking, (0, 1)) == {1: well.url.encode()}
        assert asking.metrics.shard_asked.labels("0", "lost")._value.get() == 1


def test_questions_go_to_the_less_busy_of_two() -> None:
    with fleet(Scripted(), Scripted(), Scripted()) as found:
        busy = next(iter(found.backends.values()))
        busy.count(5)
        chosen = {found.choose(0, "1|d", set()) for _ in range(60)}
        assert busy not in chosen
        assert len(chosen) == 2


@pytest.mark.parametrize(
    "body",
    [b"", b"VTR1", b"XXXX\x02\x00\x00\x00{}", b"VTR1\xff\xff\xff\xff{}", pack({}, np.zeros(3, np.float32))[:-1], pack({}) + b"x"],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        unpack(body)


def test_arrays_travel_as_they_are() -> None:
    header, (a, b) = unpack(pack({"k": 3}, np.array([[1.5, -np.inf]], np.float32), np.array([2**62, -1])))
    assert header == {"k": 3}
    assert (a.tolist(), b.tolist()) == ([[1.5, -np.inf]], [2**62, -1])


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"VITRINE_ROLE": "boss"}, "'boss' is none of all, shard, gateway"),
        ({"VITRINE_ROLE": "shard"}, "needs the shards to hold"),
        ({"VITRINE_ROLE": "shard", "VITRINE_SHARDS": "0,x"}, "needs the shards to hold"),
        ({"VITRINE_ROLE": "gateway"}, "VITRINE_SHARD_URLS"),
    ],
)
def test_settings_of_roles_that_do_not_fit(environ: dict, words: str, tmp_path: Path) -> None:
    (tmp_path / "aliases.json").write_text("{}")
    with pytest.raises(ValueError, match=words):
        create_app(ServingSettings.load(environ | {"VITRINE_RELEASE": str(tmp_path)}))
