"""A connection on the event loop: PDUs in and out, within deadlines. It knows the states of an association, not DIMSE."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

from asyncdicom.association.transcript import overhear
from asyncdicom.association.transport import is_alert, part_with, tls_failure
from asyncdicom.association.wakeup import Wakeup
from asyncdicom.errors import AssociationAborted, ConnectionLost, OperationError, ProtocolError
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.message import Message, MessageReader
from asyncdicom.upper_layer.pdu import AbortReason, PDUError, PDUReader, PDUType

T = TypeVar("T")
E = TypeVar("E", bound=OperationError)
# Makes the error for a peer that took too long: seldom wanted, and dearer than the wait.
Late = Callable[[], OperationError]

# Messages that may wait for whoever asked; beyond it the socket is not read, and the peer has to wait.
_INBOX = 64
_INBOX_BYTES = 16 << 20


class Link(asyncio.Protocol):
    """The requestor's side of a connection.

    :param who: the peer, for the text of errors
    :param max_pdu: the maximum PDU length that we announce, enforced on what comes
    :param max_object_size: bytes of the largest dataset to take
    :param check: looks at an A-ASSOCIATE-AC, and raises ProtocolError when it is none
    :ivar answer: the A-ASSOCIATE-AC, once it is here
    :ivar ended: why it is over; None while it is not
    """

    def __init__(self, who: str, max_pdu: int, max_object_size: int, check: Callable[[bytes], None]) -> None:
        self._who = who
        self._check = check
        self._overheard = overhear()
        self._frames = PDUReader(max_pdu)
        self._messages = MessageReader(max_object_size)
        self._inbox: deque[Message] = deque()
        # Bytes of the datasets in it.
        self._held = 0
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._wakeup = Wakeup()
        self._writable: asyncio.Future[None] | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._is_paused = False
        self._last_pdu = 0.0
        self.answer: bytes | None = None
        self.is_released = False
        self.ended: OperationError | None = None

    # -- the transport's side -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket")
        if self._socket is not None:
            # asyncio does this for sockets that it made itself only; without it each small message waits 40 ms.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._overheard is not None:
            self._overheard.received(data)
        if self._deaf():
            return
        try:
            self._frames.feed(data)
            for found in self._frames:
                self._last_pdu = time.monotonic()
                self._receive(found)
                if self._deaf():
                    break
        except PDUError as error:
            self._break_off(ProtocolError(f"{self._who}: {error.detail}"), error.abort_reason)
        except ProtocolError as error:
            self._break_off(ProtocolError(f"{self._who}: {error.detail}"), AbortReason.NOT_SPECIFIED)
        if self._frames.inside_pdu or self._messages.inside_message:
            self._acknowledge_at_once()
        self._wakeup.notify()

    def _acknowledge_at_once(self) -> None:
        # A peer with Nagle on waits for our delayed acknowledgement before it sends the rest. The kernel forgets the option.
        if self._socket is not None and hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _receive(self, found: pdu.PDU) -> None:
        """Act on one PDU (PS3.8 Table 9-10, the requestor's states)."""
        kind = found.type
        if kind == PDUType.DATA_TF and self.answer is not None and not self.is_released:
            # A list, because a PDU is good or bad as a whole: what is in it counts once all of it has been looked at.
            for value in list(pdu.decode_data(found.body)):
                message = self._messages.receive(value)
                if message is not None:
                    self._inbox.append(message)
                    self._held += _size_of(message)
            is_full = len(self._inbox) >= _INBOX or self._held >= _INBOX_BYTES
            if is_full and not self._is_paused and self._transport is not None:
                self._is_paused = True
                self._transport.pause_reading()
        elif kind == PDUType.ASSOCIATE_AC and self.answer is None:
            answer = bytes(found.body)
            self._check(answer)
            self.answer = answer
        elif kind == PDUType.ASSOCIATE_RJ and self.answer is None:
            self._end(pdu.decode_reject(found.body))
        elif kind == PDUType.ABORT:
            aborted = pdu.decode_abort(found.body)
            text = f"{self._who}: the peer aborted the association"
            self._end(AssociationAborted(text, source=aborted.source, diagnostic=aborted.diagnostic))
        elif kind == PDUType.RELEASE_RP and self.is_released:
            self._end(ConnectionLost(f"{self._who}: the association was released"))
        elif kind == PDUType.RELEASE_RQ and self.answer is not None:
            # Also in a collision: the requestor answers first (PS3.8 AR-8, AR-9), and waits for its own answer.
            self.write(pdu.encode_release_rp())
            if not self.is_released:
                self._end(ConnectionLost(f"{self._who}: the peer released the association"))
        else:
            raise PDUError(f"{found.name} out of turn", AbortReason.UNEXPECTED_PDU)

    def eof_received(self) -> bool | None:
        self._end(ConnectionLost(f"{self._who}: the peer closed the connection"))
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is None and is_alert(error):
            self._end(tls_failure(self._who, cast(OSError, error)))
        what = "the connection was reset" if error is not None else "the connection is closed"
        self._end(ConnectionLost(f"{self._who}: {what}"))
        self._wakeup.silence()
        # Each of them has the other: they would stay until the garbage collector comes, which stops everything else meanwhile.
        self._transport = self._socket = None
        if not self._closed.done():
            self._closed.set_result(None)
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def _deaf(self) -> bool:
        # A peer may say more after the end; it is not looked at.
        return self.ended is not None

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The certificate that the peer showed, verified; None without TLS."""
        return None if self._transport is None else self._transport.get_extra_info("peercert")

    # -- ending -------------------------------------------------------------------------------------------------------

    def _end(self, error: OperationError) -> None:
        if self.ended is None:
            self.ended = error.with_traceback(None)
            if self._transport is not None:
                self._transport.close()
        self._wakeup.notify()

    def _break_off(self, error: OperationError, reason: AbortReason) -> None:
        # PS3.8 AA-8: the peer is told, and then no longer listened to.
        if self.ended is None:
            self.ended = error.with_traceback(None)
            self._part(pdu.encode_abort(pdu.AbortSource.SERVICE_PROVIDER, reason))

    def abort(self) -> None:
        """Send A-ABORT and close; what the peer has not read by then is its loss. It need not have answered (PS3.8 AA-1)."""
        if self.ended is None:
            self.ended = ConnectionLost(f"{self._who}: the association is over")
            self._part(pdu.encode_abort())
            self._wakeup.notify()

    def _part(self, abort: bytes) -> None:
        if self._overheard is not None:
            self._overheard.sent(abort)
        if self._transport is not None:
            part_with(self._transport, abort)

    @property
    def is_gone(self) -> bool:
        """Whether the descriptor is given back."""
        return self._transport is None or self._closed.done()

    async def closed(self, seconds: float) -> None:
        """Return once the descriptor is given back; by force when the peer does not read what is left."""
        if self._transport is None or self._closed.done():
            return
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._closed)
        except TimeoutError:
            self._transport.abort()
            await asyncio.shield(self._closed)

    # -- the association's side ---------------------------------------------------------------------------------------

    async def wait(self, ready: Callable[[], T | None], seconds: float, late: Late, *, in_all: bool = False) -> T:
        """Wait for something to be there.

        :param ready: answers it, or None
        :param seconds: how long nothing may come from the peer
        :param late: makes what to raise then
        :param in_all: each PDU of the peer's does not give it more time
        :raises OperationError: what `late` makes, or why the connection is over
        """
        started = time.monotonic()
        while True:
            found = ready()
            if found is not None:
                return found
            if self.ended is not None:
                raise self.why(self.ended)
            left = (started if in_all else max(started, self._last_pdu)) + seconds - time.monotonic()
            if left <= 0:
                raise late()
            await self._wakeup.wait(left)

    @staticmethod
    def why(ended: E) -> E:
        """What ended it, to be raised: the one that is kept would hold, by its traceback, the link that keeps it."""
        raised = type(ended).__new__(type(ended), *ended.args)
        raised.__dict__.update(ended.__dict__)
        return raised

    async def over(self, seconds: float) -> None:
        """Return once the connection is over, by whatever way, or the time is."""
        until = time.monotonic() + seconds
        while self.ended is None and (left := until - time.monotonic()) > 0:
            await self._wakeup.wait(left)

    @property
    def waiting(self) -> int:
        """Messages that are here."""
        return len(self._inbox)

    def take(self) -> Message | None:
        """The next message, if it is here."""
        if not self._inbox:
            return None
        message = self._inbox.popleft()
        self._held -= _size_of(message)
        has_room = len(self._inbox) < _INBOX // 2 and self._held < _INBOX_BYTES // 2
        if self._is_paused and has_room and self._transport is not None:
            self._is_paused = False
            if self.ended is None:
                self._transport.resume_reading()
        return message

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; to a connection that is over they are lost, as they would be on the wire."""
        if self._transport is not None and not self._transport.is_closing():
            if self._overheard is not None:
                self._overheard.sent(data)
            self._transport.write(data)

    async def drained(self, seconds: float, late: Late) -> None:
        """Return once the peer has read enough for more to be written.

        :raises OperationError: what `late` makes when it does not, or why the connection is over
        """
        if self._writable is not None:
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.shield(self._writable)
            except TimeoutError:
                raise late() from None
        if self.ended is not None:
            raise self.why(self.ended)


def _size_of(message: Message) -> int:
    return 0 if message.data is None else len(message.data)
