"""The server on its socket: it listens before the model is there, and ends what it has begun before it ends."""

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from glmrun.server.app import Paths
from glmrun.server.service import Service
from quant.errors import UserError

GRACE_SECONDS = 10.0  # in which answers may end by themselves once the server is to end
HEAD_SECONDS = 20.0  # until a request's head is there
MAX_HEADERS = 64 << 10  # bytes
MAX_CONNECTIONS = 512


class Connection(H11Protocol):
    """A connection that is closed if a request's head does not arrive; uvicorn itself would wait for ever."""

    _slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio.Protocol."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As asyncio.Protocol."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio.Protocol."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        """Bytes of a head that come one by one do not begin the time anew."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._slow is None:
            self._slow = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None


class Listener(uvicorn.Server):
    """uvicorn on a thread of its own; signals are for the main thread, and a server that ends lets answers end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None are."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing more; after the grace, end what still runs with what is there."""
        self._service.desk.closing = True
        hurry = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._service.desk.hurry)
        await super().shutdown(sockets)
        hurry.cancel()


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError if that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(256)
    except OSError as why:
        no_address = isinstance(why, socket.gaierror) or why.errno == errno.EADDRNOTAVAIL
        advice = "an address of this machine is expected" if no_address else "choose another port, or end who has it"
        raise UserError(f"{host}, port {port}: {why.strerror or why}; {advice}", "failed") from None
    return found


@contextmanager
def listening(service: Service, bound_to: socket.socket) -> Iterator[None]:
    """Serve on a thread while the block runs; then drain and end."""
    config = uvicorn.Config(
        Paths(service).app(), http=Connection, ws="none", lifespan="off", log_config=None, log_level="error", access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADERS, timeout_keep_alive=60, limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=int(GRACE_SECONDS) + 5,
    )  # fmt: skip
    server = Listener(config, service)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound_to])), name="glmrun-server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        try:
            thread.join()
        except KeyboardInterrupt:  # asked twice: at once
            server.force_exit = True
            service.desk.hurry()
            thread.join()
        service.desk.close()
        bound_to.close()


def wait_for_signal() -> None:
    """Until Ctrl-C or SIGTERM; the second one interrupts what comes then."""
    asked = threading.Event()

    def hear(_: int, __: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hear)
    while not asked.wait(1):  # a wait without an end would not hear signals everywhere
        pass
