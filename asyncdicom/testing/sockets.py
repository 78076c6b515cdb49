"""Addresses that listen, that refuse, and that swallow connections."""

from __future__ import annotations

import asyncio
import errno
import resource
import select
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial

# Bursts of a fleet's sweep must not be what a test measures.
BACKLOG = 512


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a listening, non-blocking socket.

    :param port: 0 for a free one
    :raises OSError: when the address cannot be bound
    """
    listener = _bound_socket(host, port)
    try:
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def refusing_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and does not listen: connections are refused, and nobody else can take the port.

    :raises OSError: when the address cannot be bound
    """
    return _bound_socket(host, port)


def _bound_socket(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


class Listener:
    """Accepts connections on the running event loop until it is stopped.

    Unlike asyncio's own server it drops, when stopped, also the connections that are still inside their TLS handshake.

    :param listener: a listening socket, which this closes in the end
    :param factory: makes the protocol of a connection
    :param context: speak TLS
    """

    # Per wake-up of the loop, so that a burst at one listener does not keep the others waiting.
    _AT_ONCE = 8
    # Seconds of rest when descriptors ran out: the connections wait in the queue meanwhile.
    _REST = 0.1
    _OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

    def __init__(
        self, listener: socket.socket, factory: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None = None
    ) -> None:
        self._listener = listener
        self._factory = factory
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._accept)

    def _accept(self) -> None:
        for _ in range(self._AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in self._OUT_OF_RESOURCES:
                    raise
                self._loop.remove_reader(self._listener)
                self._timer = self._loop.call_later(self._REST, self._loop.add_reader, self._listener, self._accept)
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(partial(self._opened, connection))

    async def _open(self, connection: socket.socket) -> None:
        # A failed handshake is the peer's business, and part of many a test.
        with suppress(OSError):
            await self._loop.connect_accepted_socket(self._factory, connection, ssl=self._context)

    def _opened(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if task.cancelled():
            # It may not even have begun, and then no transport owns the connection.
            connection.close()

    def stop(self) -> None:
        """Accept nothing more, and drop what is not yet open."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._opening:
            task.cancel()

    async def stopped(self) -> None:
        """Return once nothing is being opened any more."""
        if self._opening:
            await asyncio.wait(self._opening)


class BlackHole:
    """An address that drops connection requests, as a host behind a silent firewall does.

    Linux answers no SYN while the queue of a listener is full; this is a listener with a queue for one connection, which it
    never accepts, and that one connection.

    :raises OSError: when the address cannot be bound, or this system answers all the same
    """

    # With a backlog of 0 Linux queues one connection; a few more cover systems that round up.
    _MOST_FILLERS = 16

    def __init__(self, host: str, port: int) -> None:
        self._sockets = [_bound_socket(host, port)]
        try:
            self._sockets[0].listen(0)
            self._fill()
        except OSError:
            self.close()
            raise

    @property
    def port(self) -> int:
        """The port."""
        return int(self._sockets[0].getsockname()[1])

    def _fill(self) -> None:
        listener = self._sockets[0]
        for _ in range(self._MOST_FILLERS):
            filler = socket.socket(listener.family, socket.SOCK_STREAM)
            filler.setblocking(False)
            error = filler.connect_ex(listener.getsockname())
            if error not in (0, errno.EINPROGRESS):
                filler.close()
                raise OSError(error, f"cannot fill the queue of {listener.getsockname()}")
            poll = select.poll()
            poll.register(filler, select.POLLOUT)
            # Loopback completes a handshake within the call that starts it; one that is still under way stays so.
            if not poll.poll(0):
                filler.close()
                return
            self._sockets.append(filler)
        raise OSError(f"the queue of {listener.getsockname()} does not fill: this system cannot simulate a black hole")

    def close(self) -> None:
        """Give everything back."""
        for each in self._sockets:
            each.close()


def allow_descriptors(needed: int) -> None:
    """Raise this process's soft limit of open files where it is lower, as far as the hard limit goes.

    :param needed: how many will be open at once
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        target = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if target > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
