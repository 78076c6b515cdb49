"""The storage SCP: the listener, and the drain."""

from __future__ import annotations

import asyncio
import errno
import importlib
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import anyio

from asyncdicom.archive import Archive
from asyncdicom.association.contract import resolve_engine
from asyncdicom.association.handshake import shake_hands
from asyncdicom.association.received import Received
from asyncdicom.background import BackgroundTasks
from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import Engine, check_ae_title
from asyncdicom.observe import NULL_OBSERVER, Observer
from asyncdicom.scp.access import Access, ServerTLS, certificate_names
from asyncdicom.scp.certificates import CurrentCertificate, explain
from asyncdicom.scp.handler import UNHANDLED_EXCEPTION, Handler, sink_of
from asyncdicom.scp.identity import Identities
from asyncdicom.scp.ingest import ByteBudget, Ingest
from asyncdicom.scp.served import Door, ServedPeer
from asyncdicom.scp.services import Service
from asyncdicom.upper_layer.context import PresentationContext

logger = logging.getLogger(__name__)

_BACKLOG = 1024
# Connections that have not yet asked for an association: a flood of them must not use up the descriptors.
_MAX_HALF_OPEN = 4096
# Running out of these is a matter of waiting; anything else of the listener is a fault.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PASSING = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}
# While draining, an association that has been quiet for so long, in seconds, has nothing under way.
_QUIET = 1.0
# What is aborted at the end of a drain has so long, in seconds, to be gone.
_ABORT_GRACE = 3.0
_ENGINES = {"native": "asyncdicom.scp.native", "pynetdicom": "asyncdicom.scp.bridge"}


class StorageSCP:
    """A storage SCP and verification SCP; serves once entered.

    ::

        async def handle(received: Received) -> int:
            ...
            return 0x0000

        async with StorageSCP(handle, port=11112):
            await anyio.sleep_forever()

    :param handler: ``handler(received, *args)``, ``async def`` or ``def``, returning a DICOM status; or an
        :class:`asyncdicom.Archive`. Without one, and when it raises, the peer gets 0xC211
    :param host: where to listen; beyond loopback it needs `access` rules
    :param port: TCP port, 0 for a free one
    :param ae_title: our AE title
    :param args: further arguments for the handler
    :param engine: ``native`` or ``pynetdicom``
    :param access: who may in; default everybody on loopback
    :param tls: TLS; default none
    :param max_associations: beyond it requests are rejected transiently (local limit exceeded)
    :param max_pdu: maximum PDU length announced and enforced, in bytes
    :param max_object_size: bytes of the largest dataset; a larger one is cut by A-ABORT
    :param require_called_ae_title: reject requests that call us by another AE title
    :param artim_timeout: seconds from connection to the whole request for association
    :param idle_timeout: seconds without anything from an association
    :param min_rate: bytes a second that a peer in the middle of a message must deliver; 0 for none
    :param drain_timeout: seconds that :meth:`drain` waits for what is under way
    :param promiscuous: accept private and unknown SOP classes as storage
    :param budget: bytes of datasets that may be in memory at once
    :param contexts: accept these presentation contexts alone
    :param services: what is answered besides, such as storage commitment; whoever made them enters and leaves them
    :param identities: which user identities are believed; None asks for none, and believes none
    :param observer: told what happens
    :raises ConfigurationError: when it would listen beyond loopback without knowing who may in, or a value is wrong
    """

    def __init__(
        self,
        handler: Handler | Archive | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 11112,
        ae_title: str = "ASYNCDICOM",
        args: Sequence[Any] = (),
        engine: Engine | None = None,
        access: Access | None = None,
        tls: ServerTLS | None = None,
        max_associations: int = 1000,
        max_pdu: int = 131_072,
        max_object_size: int = 4 << 30,
        require_called_ae_title: bool = False,
        artim_timeout: float = 10.0,
        idle_timeout: float = 60.0,
        min_rate: int = 500,
        drain_timeout: float = 30.0,
        promiscuous: bool = True,
        budget: int = 256 << 20,
        contexts: Sequence[PresentationContext] | None = None,
        services: Sequence[Service] = (),
        identities: Identities | None = None,
        observer: Observer = NULL_OBSERVER,
    ) -> None:
        if not 0 <= port <= 65_535:
            raise ConfigurationError("port", port, "a TCP port from 0 to 65535; 0 takes a free one")
        access = access or Access()
        access.check_binding(host)
        self.host = host
        self.port = port
        self._certificate = None if tls is None else CurrentCertificate(tls)
        self._artim_timeout = artim_timeout
        self._drain_timeout = drain_timeout
        self._engine = resolve_engine(engine, _ENGINES)
        self._serve = importlib.import_module(_ENGINES[self._engine]).serve
        # Plain functions as handlers block: each may, without keeping the others from running.
        self._executor = ThreadPoolExecutor(max(32, max_associations), thread_name_prefix="asyncdicom-handler")
        self._door = Door(
            ae_title=check_ae_title(ae_title),
            access=access,
            ingest=Ingest(sink_of(handler, args, self._executor), observer, ByteBudget(budget)),
            observer=observer,
            max_associations=max_associations,
            max_pdu=max_pdu,
            max_object_size=max_object_size,
            require_called_ae_title=require_called_ae_title,
            idle_timeout=idle_timeout,
            min_rate=min_rate,
            promiscuous=promiscuous,
            bind={} if tls is None else tls.titles(),
            contexts=contexts,
            services={service.answers: service for service in services},
            identities=identities,
        )
        self._half_open = 0
        self._listeners: list[socket.socket] = []
        self._tasks = BackgroundTasks()

    # -- living -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._certificate is not None:
            await self._certificate.open()
        self._listeners = self._bind()
        self.port = self._listeners[0].getsockname()[1]
        await self._tasks.__aenter__()
        for listener in self._listeners:
            self._tasks.start(self._accept, listener)
        self._door.observer.ingest_in_flight(0, self._door.ingest.budget.limit)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            self._close_listeners()
            # Its threads may be in a handler of the user's that never ends; nobody waits for those.
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._door.verification.close()
            if self._certificate is not None:
                self._certificate.close()

    def _bind(self) -> list[socket.socket]:
        listeners: list[socket.socket] = []
        try:
            # An address of ours is looked up without asking the network, so this does not block the loop.
            found = socket.getaddrinfo(self.host or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, _, _, address in dict.fromkeys(found):
                if self.port == 0 and listeners:
                    break
                listener = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                listeners.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(address)
                listener.listen(_BACKLOG)
        except OSError as error:
            for listener in listeners:
                listener.close()
            raise ConfigurationError(
                "scp.port", f"{self.host}:{self.port}", f"cannot listen there: {error.strerror}"
            ) from error
        return listeners

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    # -- looking after it ---------------------------------------------------------------------------------------------

    @property
    def associations(self) -> int:
        """Established associations."""
        return self._door.count

    @property
    def is_accepting(self) -> bool:
        """Whether the listener is open and new associations are welcome."""
        return bool(self._listeners) and not self._door.draining

    @property
    def access(self) -> Access:
        """Who may in; replacing it counts from the next request on."""
        return self._door.access

    @access.setter
    def access(self, access: Access) -> None:
        access.check_binding(self.host)
        self._door.access = access

    @property
    def identities(self) -> Identities | None:
        """Which user identities are believed; replacing it counts from the next request on."""
        return self._door.identities

    @identities.setter
    def identities(self, identities: Identities | None) -> None:
        self._door.identities = identities

    async def renew_certificate(self) -> None:
        """Take the certificate anew if its files have changed; when they are broken, that is logged and the old one stays."""
        if self._certificate is not None:
            await self._certificate.renew()

    async def drain(self) -> None:
        """Accept nothing new, finish what is under way, then abort what is left.

        New requests are rejected transiently. Returns after at most the drain timeout and a few seconds for the aborts.
        """
        self._door.draining = True
        quiet_since: dict[Any, float] = {}
        deadline = time.monotonic() + self._drain_timeout
        # Who comes from now on is turned away; senders that try again and again are nobody to wait for.
        under_way = set(self._door.serving)
        while (under_way := under_way & self._door.serving) and time.monotonic() < deadline + _ABORT_GRACE:
            now = time.monotonic()
            for association in under_way:
                if association.is_busy and now < deadline:
                    quiet_since.pop(association, None)
                elif now >= deadline or now - quiet_since.setdefault(association, now) > _QUIET:
                    association.give_up()
            await anyio.sleep(0.05)

    async def received(self) -> AsyncIterator[Received]:
        """Receive by iteration instead of by a handler: the instance is acknowledged when the next one is asked for.

        An instance in whose turn the loop ends, by whatever way, is answered with 0xC211.
        """
        send, receive = anyio.create_memory_object_stream[tuple[Received, asyncio.Future[int]]]()

        async def offer(received: Received) -> int:
            answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            await send.send((received, answer))
            return await answer

        previous, self._door.ingest.sink = self._door.ingest.sink, offer
        answer: asyncio.Future[int] | None = None
        try:
            async with receive:
                async for received, answer in receive:
                    yield received
                    if not answer.done():
                        answer.set_result(0x0000)
        finally:
            self._door.ingest.sink = previous
            send.close()
            if answer is not None and not answer.done():
                answer.set_result(UNHANDLED_EXCEPTION)

    # -- connections --------------------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        is_exhausted = False
        while True:
            # Not the loop's sock_accept: cancelled at the wrong moment, it loses the connection that it has accepted.
            await anyio.wait_readable(listener)
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    # The connection stays in the backlog; trying again at once would take the whole processor.
                    if not is_exhausted:
                        logger.error("cannot accept: %s; trying again until it can be", error.strerror)
                    is_exhausted = True
                    await anyio.sleep(0.1)
                elif error.errno not in _PASSING:
                    raise
                continue
            is_exhausted = False
            sock.setblocking(False)
            peer = ServedPeer(str(address[0]))
            if not self._door.access.admits_address(peer.address):
                sock.close()
                self._door.refused("network", peer)
            elif self._half_open + len(self._door.serving) - self._door.count >= _MAX_HALF_OPEN:
                sock.close()
                self._door.refused("limit", peer)
            elif self._tasks.is_open:
                self._tasks.start(self._connection, sock, peer)
            else:
                # It came while we were leaving.
                sock.close()

    async def _connection(self, sock: socket.socket, peer: ServedPeer) -> None:
        """One connection, from accepted to gone. What goes wrong in it stays in it."""
        deadline = time.monotonic() + self._artim_timeout
        try:
            if self._engine == "native":
                await self._serve(self._door, sock, peer, deadline, await self._context(sock))
            else:
                await self._bridge(sock, peer, deadline)
        except Exception as error:
            logger.error("serving a connection from %s failed: %s", peer.address, type(error).__name__)
            logger.debug("traceback", exc_info=True)

    async def _context(self, sock: socket.socket) -> ssl.SSLContext | None:
        """The TLS context for a connection; the connection is closed when there is no getting it."""
        try:
            return None if self._certificate is None else await self._certificate.context()
        except BaseException:
            sock.close()
            raise

    async def _bridge(self, sock: socket.socket, peer: ServedPeer, deadline: float) -> None:
        try:
            if self._certificate is not None:
                sock = await self._secure(sock, await self._certificate.context(), peer)
            ready = await self._first_byte(sock, deadline)
        except OSError as error:
            sock.close()
            # With TLS this is the handshake, or silence after it.
            is_tls = self._certificate is not None and not isinstance(sock, ssl.SSLSocket)
            self._door.refused("tls" if is_tls else "artim", peer, explain(error) if is_tls else "")
            return
        except BaseException:
            sock.close()
            raise
        if not ready:
            # A load balancer that looks whether we are there: cheap, and nothing to report.
            sock.close()
            return
        await self._serve(self._door, sock, peer, deadline)

    async def _secure(self, sock: socket.socket, context: ssl.SSLContext, peer: ServedPeer) -> ssl.SSLSocket:
        self._half_open += 1
        try:
            secured = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            try:
                with anyio.fail_after(self._artim_timeout):
                    await shake_hands(secured)
            except BaseException:
                secured.close()
                raise
        finally:
            self._half_open -= 1
        peer.names = certificate_names(secured.getpeercert())
        return secured

    async def _first_byte(self, sock: socket.socket, deadline: float) -> bool:
        """Wait for the peer to say something, before threads are spent on it.

        :return: False when it went away instead
        :raises TimeoutError: when it kept silent
        """
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            return True
        self._half_open += 1
        try:
            with anyio.fail_after(deadline - time.monotonic()):
                await anyio.wait_readable(sock)
        finally:
            self._half_open -= 1
        if isinstance(sock, ssl.SSLSocket):
            return True
        try:
            return bool(sock.recv(1, socket.MSG_PEEK))
        except (BlockingIOError, ConnectionError):
            return False
