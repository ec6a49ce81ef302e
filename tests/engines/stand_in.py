"""A JSON server on loopback that may be killed and started again: what the stand-ins of services are made of."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, str, Any], tuple[int, Any]]
"""(method, path with its query, body) -> (status, what is answered, None for nothing)."""


class JsonServer:
    """Answers one request after the other."""

    def __init__(self, port: int, answer: Answer) -> None:
        self.port, self.answer, self.lock = port, answer, threading.Lock()
        self.start()

    def start(self) -> None:
        def reply(request: BaseHTTPRequestHandler) -> None:
            body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
            with self.lock:
                status, said = self.answer(request.command, request.path, json.loads(body or b"null"))
            data = b"" if said is None else json.dumps(said).encode()
            request.send_response(status)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(data)))
            request.end_headers()
            request.wfile.write(data)

        methods = {f"do_{method}": reply for method in ("GET", "HEAD", "PUT", "PATCH", "POST", "DELETE")}
        handler = type("Handler", (BaseHTTPRequestHandler,), methods | {"log_message": lambda *_: None})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self) -> None:
        self.server.shutdown()
        self.server.server_close()
