"""A kept HTTP/1.1 connection to one shard process, with at most one question under way; read without ever blocking.

Only what a shard's own answers need: a status and a content-length. `http.client` spends as long on an answer's header as the
whole exchange takes here.
"""

import select
import socket

CHUNK_BYTES = 262_144
MOST_HEADER = 16_384


class ConnectionFailed(OSError):
    """The other side is away, went away, or does not speak HTTP."""


class Connection:
    """Raises ConnectionFailed when nothing listens at (`host`, `port`)."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        try:
            self.socket = socket.create_connection((host, port), timeout_s)
        except OSError as error:
            raise ConnectionFailed(str(error)) from None
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host = f"{host}:{port}".encode()
        self.fd = self.socket.fileno()
        self.data = bytearray()
        self.body_at = self.end = -1
        self.status = 0
        self.timeout_s = timeout_s

    def idle(self) -> bool:
        """Whether the connection is as it should be between two questions: open, with nothing to read."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)

    def ask(self, method: str, path: str, body: bytes = b"", headers: bytes = b"") -> None:
        """Sends a question; `headers` are whole lines. Raises ConnectionFailed."""
        self.data.clear()
        self.body_at = self.end = -1
        head = b"%s %s HTTP/1.1\r\nhost: %s\r\ncontent-length: %d\r\n%s\r\n" % (
            method.encode(), path.encode(), self.host, len(body), headers,
        )  # fmt: skip
        try:
            self.socket.settimeout(self.timeout_s)
            self.socket.sendall(head + body)
            self.socket.settimeout(0)
        except OSError as error:
            raise ConnectionFailed(str(error)) from None

    def read(self) -> bytes | None:
        """The body of the answer once all of it is here, else None; `status` is its status. Raises ConnectionFailed."""
        try:
            piece = self.socket.recv(CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise ConnectionFailed(str(error)) from None
        if not piece:
            raise ConnectionFailed("the shard closed the connection")
        self.data += piece
        if self.body_at < 0:
            self._read_header()
        return bytes(self.data[self.body_at : self.end]) if self.body_at >= 0 and len(self.data) >= self.end else None

    def wait(self, limit_s: float) -> bytes:
        """The body of the answer, waited for. Raises ConnectionFailed, also when it takes longer than `limit_s`."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while poll.poll(1e3 * limit_s):
            body = self.read()
            if body is not None:
                return body
        raise ConnectionFailed(f"no answer within {limit_s:g} s")

    def close(self) -> None:
        self.socket.close()

    def _read_header(self) -> None:
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            if len(self.data) > MOST_HEADER:
                raise ConnectionFailed("the answer's header does not end")
            return
        lines = bytes(self.data[:end]).lower().split(b"\r\n")
        length = next((line[15:] for line in lines if line.startswith(b"content-length:")), b"")
        try:
            self.status, size = int(lines[0][9:12]), int(length)
        except ValueError:
            raise ConnectionFailed("the answer is not one of a shard") from None
        self.body_at, self.end = end + 4, end + 4 + size
