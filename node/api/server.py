"""The HTTP server inside the node's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator

import uvicorn

from chain.errors import ConfigError
from node.api.app import create_app
from node.api.connection import Connection
from node.net.identity import PortInUseError
from node.seam import NodeSeam

log = logging.getLogger("blyan.api")
STOP_S = 1.0  # for answers under way; event streams are ended before
BACKLOG = 128
MAX_CONNECTIONS = 512
KEEPALIVE_S = 5


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: the daemon has one order for stopping."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ApiServer:
    """The API and the explorer on one address. `port` 0 takes a free one."""

    def __init__(self, node: NodeSeam, host: str, port: int) -> None:
        self._host, self._wanted = host, port
        self.port = port  # the real one after `start`
        self._app = create_app(node, names=(host,))
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen; ConfigError names the port when it is taken or not ours to take."""
        listener = self._listen()
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http=Connection,
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEPALIVE_S,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve([listener]), name="api")
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({listening, self._task}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._task.done():
            listener.close()
            await self._task  # raises what ended it
        log.info("the API and the explorer are at %s", self.url)

    async def stop(self) -> None:
        """End every stream and connection; at most about 1.5 s."""
        self._app.state.hub.close()
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        _, pending = await asyncio.wait({self._task}, timeout=STOP_S)
        if pending:
            self._server.force_exit = True
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=0.4)
        self._task = None

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._wanted))
            listener.listen(BACKLOG)  # only this tells that another process listens
        except OSError as error:
            listener.close()
            raise _cannot_listen(self._host, self._wanted, error) from None
        listener.setblocking(False)
        return listener


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"port {port} on {host} is in use by another program; stop it, or choose another "
            "port with api_port in config.toml (BLYAN_API_PORT)"
        )
    return ConfigError(
        f"cannot listen on {host} port {port}: {error.strerror or error}; "
        "check api_host and api_port in config.toml"
    )
