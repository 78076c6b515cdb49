"""The HTTP server, in our own loop and under our own signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import anyio
import uvicorn

from asyncdicom.errors import ConfigurationError
from asyncdicom.web.app import create_app, streams_of
from asyncdicom.web.backend import Backend
from asyncdicom.web.stream import Streams

logger = logging.getLogger(__name__)

# Requests here take milliseconds; what still runs after this is cut.
_GRACE = 2
# One page or scrape in the making does not hold up another.
_RENDERERS = 2


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with a way to know that it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = anyio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the service, which drains before it ends."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell that it did."""
        await super().startup(sockets)
        self.serving.set()


@asynccontextmanager
async def serve_web(backend: Backend, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
    """Serve the web side for the length of the block.

    :param host: an address of this machine
    :param port: 0 takes a free one
    :return: the address and the port that are served, once they are
    :raises ConfigurationError: when it cannot listen there
    """
    executor = ThreadPoolExecutor(_RENDERERS, thread_name_prefix="web")
    listener: socket.socket | None = None
    try:
        # In a thread, because a host name is looked up on the way, and files are read.
        loop = asyncio.get_running_loop()
        listener = await loop.run_in_executor(executor, _listen, host, port)
        streams = streams_of(backend)
        server = await loop.run_in_executor(executor, _make_server, backend, executor, streams)
        address = listener.getsockname()[:2]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_serve, server, listener, name="web")
            await server.serving.wait()
            try:
                yield address[0], address[1]
            finally:
                # It ends by itself then, and the group waits for it: at most the grace. Streams would go on for ever.
                streams.end()
                server.should_exit = True
    finally:
        if listener is not None:
            listener.close()
        executor.shutdown(wait=False, cancel_futures=True)


def _make_server(backend: Backend, executor: ThreadPoolExecutor, streams: Streams) -> _Server:
    config = uvicorn.Config(
        create_app(backend, executor, streams),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # Behind a proxy of this machine the guard has to see who asks, and not the proxy.
        proxy_headers=True,
        forwarded_allow_ips="127.0.0.1",
        limit_concurrency=512,
        timeout_graceful_shutdown=_GRACE,
    )
    config.load()
    return _Server(config)


async def _serve(server: _Server, listener: socket.socket) -> None:
    # Shielded, because uvicorn that is cancelled leaves its connections open; its own shutdown has a deadline.
    with anyio.CancelScope(shield=True):
        await server.serve([listener])
    if not server.should_exit:
        raise RuntimeError("the web server ended by itself")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError("web.host", host, f"not an address of this machine: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        remedy = f"cannot listen at {host}:{port}: {error.strerror}; is another service there?"
        raise ConfigurationError("web.port", port, remedy) from error
    return listener
