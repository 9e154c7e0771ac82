"""A node's API that lies: an HTTP server of its own, between a client and an honest node."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import httpx


@dataclass
class Answer:
    """What goes over the wire. `endless`: the body is repeated until the client hangs up; `drip`:
    its bytes come one at a time, and then nothing more until the liar is stopped."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None  # what Content-Length says, where that is a lie
    endless: bool = False
    drip: bool = False


Lie = Callable[[str, bytes], Answer | bytes]  # from the path below /api/v1 and the honest answer


class Liar:
    """Hands on what the node at `honest` answers, after `lie` has looked at it."""

    def __init__(self, honest: str, lie: Lie) -> None:
        self.honest, self.lie = honest, lie
        self.asked: list[str] = []
        self._stopped = threading.Event()
        liar = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                liar._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """A test has nothing to tell of each request."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Liar:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.removeprefix("/api/v1/")
        self.asked.append(path)
        found = httpx.get(f"{self.honest}{request.path}", trust_env=False)
        told = self.lie(path, found.content)
        answer = told if isinstance(told, Answer) else Answer(told, found.status_code)
        try:
            self._write(request, answer)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True  # the client has had enough

    def _write(self, request: BaseHTTPRequestHandler, answer: Answer) -> None:
        request.send_response(answer.status)
        for name, value in answer.headers.items():
            request.send_header(name, value)
        if not answer.endless:
            length = len(answer.body) if answer.length is None else answer.length
            request.send_header("Content-Length", str(length))
        request.end_headers()
        if answer.drip:
            for at in range(min(3, len(answer.body))):
                request.wfile.write(answer.body[at : at + 1])
                request.wfile.flush()
            self._stopped.wait()
        while answer.endless and not self._stopped.is_set():
            request.wfile.write(answer.body)
        if not answer.drip and not answer.endless:
            request.wfile.write(answer.body)
        request.close_connection = True
