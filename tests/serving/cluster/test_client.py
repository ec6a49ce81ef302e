"""Asking several shards at once: late, silent, busy and broken ones, by sockets whose answers a test decides."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.app import create_app
from serving.cluster.client import MAX_TRIES, FanOut, InvalidShardRequest, PendingShard, ShardClient, ShardRequest
from serving.cluster.fleet import Fleet, addresses_of
from serving.cluster.metrics import GatewayMetrics
from serving.cluster.wire import HEADER, SEARCH, pack, unpack
from serving.settings import ServingSettings
from serving.telemetry.metrics import Metrics
from tests.running import until


class Scripted:
    """A shard process whose answers a test decides: `delay_s` before each, or none before `answering`, `status`, and what it holds.

    Its answer is its url, or `body` where that is given.
    """

    def __init__(self, delay_s: float = 0.0, status: int = 200, shards: tuple[int, ...] = (0,)) -> None:
        self.delay_s, self.status, self.shards = delay_s, status, shards
        self.body = b""
        self.answering = threading.Event()
        self.answering.set()
        self.asked = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(60)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                state = {"shards": scripted.shards, "versions": {"1": {"state": "ready", "digest": "d", "reason": ""}}}
                self.answer(200, json.dumps(state).encode())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                scripted.asked += 1
                time.sleep(scripted.delay_s)
                scripted.answering.wait(120)
                self.answer(scripted.status, scripted.body or scripted.url.encode())

            def answer(self, status: int, body: bytes) -> None:
                with suppress(OSError):  # whoever asked may have gone away
                    self.send_response(status)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                return

        return Handler


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
            one.answering.set()
            one.close()


def ask(client: ShardClient, shards: tuple[int, ...] = (0,), latest: float | None = None) -> dict[int, bytes]:
    return client.fan_out(SEARCH, "1|d", list(shards), lambda shard, left_s: b"?", url_in, latest)


def url_in(body: bytes) -> bytes:
    if not body.startswith(b"http://"):
        raise ValueError("no url")
    return body


def test_a_late_answer_is_asked_for_again_elsewhere_and_the_first_counts() -> None:
    fast, slow = Scripted(), Scripted()
    with fleet(fast, slow) as found:
        client = ShardClient(found, GatewayMetrics(Metrics(), found), timeout_s=60.0, hedges=1.0)
        for _ in range(64):
            ask(client)
        slow.answering.clear()
        for n in range(100):
            assert ask(client) == {0: fast.url.encode()}
            if n >= 12 and client.metrics.answers.labels("0", "hedge")._value.get():
                break
        assert client.metrics.answers.labels("0", "hedge")._value.get() > 0
        slow.answering.set()
        until(lambda: all(b.outstanding == 0 for b in found.backends.values()))


def test_without_a_budget_nothing_is_asked_twice() -> None:
    one, two = Scripted(delay_s=0.03), Scripted(delay_s=0.03)
    with fleet(one, two) as found:
        client = ShardClient(found, GatewayMetrics(Metrics(), found), timeout_s=60.0, hedges=0.0)
        for _ in range(40):
            ask(client)
        assert one.asked + two.asked == 40


def test_a_hedge_that_is_not_sent_is_not_paid() -> None:
    with fleet(Scripted()) as found:
        client = ShardClient(found, GatewayMetrics(Metrics(), found), timeout_s=60.0, hedges=1.0)
        client.budget.left = 2.0
        until_s = client.clock() + 60
        request = ShardRequest(SEARCH, "1|d", lambda shard, left_s: b"?", url_in, client.clock(), until_s, 60.0, True, {})
        fan_out = FanOut(client, request)
        fan_out.pending[0] = PendingShard({f"tried:{n}" for n in range(MAX_TRIES)}, under_way=1)
        fan_out._hedge(0)
        assert (client.budget.left, fan_out.calls) == (2.0, {})
        fan_out.pending[0] = PendingShard({"tried:0"}, under_way=1)
        fan_out._hedge(0)
        assert (client.budget.left, len(fan_out.calls)) == (1.0, 1)
        assert [future.result(60)[0] for future in fan_out.calls] == [200]


def test_a_silent_shard_costs_its_timeout_once_and_the_others_answer() -> None:
    silent, well = Scripted(), Scripted(shards=(1,))
    silent.answering.clear()
    with fleet(silent, well, probe_s=600) as found:  # no probe lifts it again within this test
        client = ShardClient(found, GatewayMetrics(Metrics(), found), timeout_s=6.0, hedges=0.0)
        for _ in range(3):
            assert ask(client, (0, 1)) == {1: well.url.encode()}
        assert silent.asked == 1
        assert client.metrics.answers.labels("0", "lost")._value.get() == 3


def test_a_request_that_has_less_time_than_a_shard_gets_tells_nothing_of_the_shard() -> None:
    slow = Scripted()
    slow.answering.clear()
    with fleet(slow) as found:
        client = ShardClient(found, GatewayMetrics(Metrics(), found), timeout_s=60.0, hedges=0.0)
        assert ask(client, latest=time.monotonic() + 0.05) == {}
        assert next(iter(found.backends.values())).up


@pytest.mark.parametrize("status", [400, 409, 500, 503, 504])
def test_who_is_too_busy_lacks_the_version_or_fails_is_passed_over(status: int) -> None:
    busy, free = Scripted(status=status), Scripted()
    with fleet(busy, free) as found:
        client = ShardClient(found, GatewayMetrics(Metrics(), found), timeout_s=60.0, hedges=0.0)
        assert all(ask(client) == {0: free.url.encode()} for _ in range(10))
        assert busy.asked >= 1


def test_a_question_that_is_wrong_is_not_asked_elsewhere() -> None:
    with fleet(Scripted(status=422), Scripted(status=422)) as found:
        client = ShardClient(found, GatewayMetrics(Metrics(), found), timeout_s=60.0, hedges=0.0)
        with pytest.raises(InvalidShardRequest, match="http://"):
            ask(client)
        until(lambda: all(b.outstanding == 0 for b in found.backends.values()))


def test_an_answer_that_is_none_is_a_failure_of_the_process_and_another_is_asked() -> None:
    wrong, well = Scripted(), Scripted()
    with fleet(wrong, well, probe_s=600) as found:
        wrong.body = b"junk"
        client = ShardClient(found, GatewayMetrics(Metrics(), found), timeout_s=60.0, hedges=0.0)
        for _ in range(20):
            assert ask(client) == {0: well.url.encode()}
        assert wrong.asked == 1
        assert [b.reason for b in found.backends.values() if not b.up] == ["no url"]
        until(lambda: all(b.outstanding == 0 for b in found.backends.values()))


def test_a_shard_of_which_only_wrong_answers_come_is_lost() -> None:
    wrong, well = Scripted(), Scripted(shards=(1,))
    with fleet(wrong, well, probe_s=600) as found:
        wrong.body = b"junk"
        client = ShardClient(found, GatewayMetrics(Metrics(), found), timeout_s=60.0, hedges=0.0)
        assert ask(client, (0, 1)) == {1: well.url.encode()}
        assert client.metrics.answers.labels("0", "lost")._value.get() == 1


def test_questions_go_to_the_less_busy_of_two() -> None:
    with fleet(Scripted(), Scripted(), Scripted()) as found:
        busy = next(iter(found.backends.values()))
        busy.count(5)
        chosen = {found.choose(0, "1|d", set()) for _ in range(60)}
        assert busy not in chosen
        assert len(chosen) == 2


def damaged() -> list[bytes]:
    """What is no message: nothing, junk, a message cut short or without its header, columns of other types, a null."""
    whole = pack({"k": 3}, query=np.zeros((2, 3), np.float32))
    strange = [pa.table({"query": pa.array(["a"])}), pa.table({"query": pa.array([1.0, None], pa.float32())})]
    named = [t.replace_schema_metadata({HEADER: b"{}"}) for t in strange]
    bodies = [b"", b"VTR1", whole[:-30], whole[: len(whole) // 2], pack({}).replace(b"{}", b"[]"), b"\xff" * 200]
    return bodies + [stream_of(t) for t in (*named, pa.table({"query": pa.array([1.0], pa.float32())}))]


def stream_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("body", damaged())
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="bytes are no message"):
        unpack(body)


@given(st.binary(max_size=300), st.integers(0, 200), st.randoms())
@settings(max_examples=200, deadline=None)
def test_a_message_with_changed_bytes_is_read_or_refused(noise: bytes, at: int, random: Random) -> None:
    whole = bytearray(pack({"k": 3}, query=np.ones((2, 3), np.float32), row=np.arange(2)))
    whole[at : at + len(noise) // 8] = noise[: len(noise) // 8]
    for body in (noise, bytes(whole)):
        try:
            header, arrays = unpack(body)
        except ValueError:
            continue
        assert isinstance(header, dict)
        assert all(a.ndim in (1, 2) for a in arrays.values())


def test_arrays_travel_as_they_are() -> None:
    header, arrays = unpack(pack({"k": 3}, similarity=np.array([[1.5, -np.inf]], np.float32), row=np.array([2**62])))
    assert header == {"k": 3}
    assert {n: a.tolist() for n, a in arrays.items()} == {"similarity": [[1.5, -np.inf]], "row": [2**62]}


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
