"""HTTP by uvicorn, with the head of an answer and its body in one packet, and with limits for connections that ask nothing.

uvicorn writes them one after the other and the loop sends each at once, so that every answer was two passes through the network's
code, and whoever waits was woken by its head only to wait on. It also takes any number of connections, and as long as bytes trickle
in, or before there was a first, it never closes one.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD, END = b"HTTP/1.1 ", b"\r\n\r\n"


class OneWrite:
    """A transport that keeps an answer's head for what is written next; it goes alone when nothing is in the same turn of the loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.transport, self.loop, self.head = transport, loop, b""

    def write(self, data: bytes) -> None:
        if self.head:
            head, self.head = self.head, b""
            self.transport.write(head + data)
        elif data.startswith(HEAD) and data.endswith(END):
            self.head = data
            self.loop.call_soon(self.flush)
        else:
            self.transport.write(data)

    def flush(self) -> None:
        """Sends a head that is still here."""
        if self.head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self.transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class OneWriteProtocol(HttpToolsProtocol):
    """One connection. It is closed when there are more than `most`, or when a whole head is not there in time.

    The first head has `head_s`; each later one has uvicorn's keep-alive, from the answer before it. `turned_away` counts, for all
    connections of the process, those that were too many.
    """

    turned_away = 0

    def __init__(self, *args: Any, head_s: float = 20.0, most: int = 1000, **named: Any) -> None:
        super().__init__(*args, **named)
        self.head_s, self.most = head_s, most

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
        if len(self.connections) > self.most:
            OneWriteProtocol.turned_away += 1
            transport.close()
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.head_s, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None  # uvicorn would cancel it at the first byte
        super().data_received(data)
        if timer is None:
            return
        if self.cycle is None or self.cycle.response_complete:
            self.timeout_keep_alive_task = timer
        else:
            timer.cancel()
