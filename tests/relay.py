"""A TCP relay on loopback between a client and a server, which cuts, delays or damages what goes through it when it is told to."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from tests.servers import free_port

METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
UNAVAILABLE = b"HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: a socket that is closed sends a reset."""


@dataclass
class _Pair:
    """The two ends of one connection; `breaks`: the next answer breaks off in its "body" or its "head", and nothing more comes."""

    near: socket.socket
    far: socket.socket
    breaks: str = ""
    ended: int = 0

    def end(self, to: socket.socket) -> None:
        """Nothing more goes to one end; once nothing goes to either, both are closed."""
        self.ended += 1
        if self.ended == 2:
            return self.close()
        try:
            to.shutdown(socket.SHUT_WR)
        except OSError:  # it is gone
            self.close()

    def close(self, reset: bool = False) -> None:
        for one in (self.near, self.far):
            with suppress(OSError):
                if reset and one is self.near:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
                else:
                    one.shutdown(socket.SHUT_RDWR)
            one.close()


class Relay:
    """Forwards a loopback port to a server's, until it is cut: then connections break off and new ones are refused.

    `delay_s` is waited for before each piece, either way. `share` of HTTP requests meet one of `faults` in turn: "503", "reset"
    (before the server has it), "truncated" (half of the answer's body) or "torn" (half of its head). `met` counts them.
    """

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self.delay_s, self.share = 0.0, 0.0
        self.faults: tuple[str, ...] = ()
        self.met: Counter[str] = Counter()
        self.random = random.Random(7)
        self.open: list[_Pair] = []
        self.start()

    def start(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for pair in self.open:
            pair.close()
        self.open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:  # the server is not up yet
                    near.close()
                    continue
                pair = _Pair(near, far)
                self.open = [p for p in self.open if p.near.fileno() >= 0] + [pair]
                for passing in (self._ask, self._answer):
                    threading.Thread(target=passing, args=(pair,), daemon=True).start()

    def _ask(self, pair: _Pair) -> None:
        try:
            while data := pair.near.recv(1 << 16):
                time.sleep(self.delay_s)
                fault = self._draw(data)
                if fault == "reset":
                    return pair.close(reset=True)
                if fault == "503":
                    self._refuse(pair.near)
                    return pair.close()
                pair.breaks = fault or pair.breaks
                pair.far.sendall(data)
            pair.end(pair.far)
        except OSError:
            pair.close()

    def _answer(self, pair: _Pair) -> None:
        try:
            while data := pair.far.recv(1 << 16):
                time.sleep(self.delay_s)
                if pair.breaks:
                    pair.near.sendall(data[: _half(data, pair.breaks)])
                    return pair.close()
                pair.near.sendall(data)
            pair.end(pair.near)
        except OSError:
            pair.close()

    def _draw(self, data: bytes) -> str:
        """The fault that a piece meets; "" for none. A request begins with a method, and comes when the last was answered."""
        if not self.faults or not data.startswith(METHODS) or self.random.random() >= self.share:
            return ""
        fault = self.faults[self.met.total() % len(self.faults)]
        self.met[fault] += 1
        return fault

    @staticmethod
    def _refuse(near: socket.socket) -> None:
        """Reads what still comes of the request, then answers 503."""
        near.settimeout(0.1)
        with suppress(TimeoutError):
            while near.recv(1 << 16):
                pass
        near.sendall(UNAVAILABLE % len(SLOW_DOWN) + SLOW_DOWN)


def _half(answer: bytes, breaks: str) -> int:
    """So many bytes go through of an answer's first piece: half of the head ("torn"), or the head and half of what follows it."""
    head = answer.find(b"\r\n\r\n") + 4
    return head // 2 if breaks == "torn" else head + (len(answer) - head) // 2
