"""The socket under pynetdicom's association: it waits, reads and writes with deadlines, and refuses what is over its caps."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from pynetdicom import evt
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from asyncdicom.association.transport import is_alert
from asyncdicom.upper_layer.message import Message
from asyncdicom.upper_layer.pdu import encode_abort

if TYPE_CHECKING:
    from asyncdicom.association.hardened import HardenedAssociation

# How long a thread sleeps when there is nothing to do: only timers need it to wake at all.
TICK = 0.25
# The peer closes after a release or a rejection (PS3.8 AR-3); DCMTK waits for us to do it, so we do, this much later.
_CLOSING = 0.01
_HEADER_LENGTH = 6
_MAX_ASSOCIATE_PDU = 1 << 20
_FIXED_PDUS = {0x03, 0x05, 0x06, 0x07}
_RECV = select.POLLIN | select.POLLHUP | select.POLLERR
# What a refused peer may still have in flight before we close: reading it lets our A-ABORT arrive instead of a reset.
_LINGER_BYTES = 1 << 20


class Fault(StrEnum):
    """Why the transport or the protocol broke down, from our side of the wire."""

    CLOSED = "closed"
    RESET = "reset"
    TLS = "tls"
    STALLED = "stalled"
    TOO_SLOW = "too_slow"
    PROTOCOL = "protocol"
    TOO_LARGE = "too_large"


class Mailbox(queue.Queue[Any]):
    """A bounded queue between two threads that can be closed: then nobody waits on it any more.

    :param maxsize: items that may wait
    :param on_put: called after each item, outside of the lock
    :ivar is_closed: whether its other side is gone
    """

    def __init__(self, maxsize: int = 0, on_put: Callable[[Any], None] | None = None) -> None:
        super().__init__(maxsize)
        self._on_put = on_put
        self.is_closed = False

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item, waiting for room."""
        super().put(item, block, timeout)
        if self._on_put is not None:
            self._on_put(item)

    def put_over(self, item: Any) -> None:
        """Put an item whether there is room or not."""
        with self.mutex:
            self._put(item)
            self.unfinished_tasks += 1
            self.not_empty.notify()

    def close(self) -> None:
        """Let everybody go who waits for room, now and later."""
        with self.mutex:
            self.is_closed = True
            self.maxsize = 1 << 60
            self.not_full.notify_all()

    def drop(self, kind: type) -> None:
        """Remove the waiting items of a type."""
        with self.mutex:
            kept = [item for item in self.queue if not isinstance(item, kind)]
            self.queue.clear()
            self.queue.extend(kept)
            self.not_full.notify_all()


class Inbox(Mailbox):
    """Messages that wait for whom they are for.

    It takes whatever it is given, so that the thread that reads is never caught in it: that thread has also to send. Instead it
    does not read on while there is no room.

    :param messages: how many may wait
    :param size: how many bytes may wait
    :param on_put: called after each message
    :param on_room: called when there is room again
    """

    def __init__(self, messages: int, size: int, on_put: Callable[[Any], None], on_room: Callable[[], None]) -> None:
        super().__init__(on_put=on_put)
        self._limits = (messages, size)
        self._on_room = on_room
        self._sizes: deque[int] = deque()
        self._size = 0
        self._arriving = 0

    @property
    def has_room(self) -> bool:
        """Whether the next message may be read."""
        return self.is_closed or (len(self._sizes) < self._limits[0] and self._size < self._limits[1])

    def put_message(self, message: Message, size: int) -> None:
        """Put a message; called by one thread alone.

        :param size: its bytes
        """
        self._arriving = size
        self.put((message.context_id, message))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take a message, or (None, None) when there will be none."""
        had_room = self.has_room
        item = super().get(block, timeout)
        if not had_room:
            self._on_room()
        return item

    def _put(self, item: Any) -> None:
        size = 0 if item[1] is None else self._arriving
        self._sizes.append(size)
        self._size += size
        super()._put(item)

    def _get(self) -> Any:
        self._size -= self._sizes.popleft()
        return super()._get()


class Pace:
    """How slowly a peer may deliver one PDU.

    :param stall: seconds without a byte
    :param total: seconds for the whole PDU, None for no limit
    :param min_rate: bytes a second, demanded once `stall` has passed for the first time; 0 for none
    """

    def __init__(self, stall: float, total: float | None = None, min_rate: int = 0) -> None:
        self.stall = stall
        self.total = total
        self.min_rate = min_rate

    def limit(self, started: float, last: float, count: int) -> float:
        """The moment by which the next byte must be here."""
        limit = last + self.stall
        if self.total is not None:
            limit = min(limit, started + self.total)
        if self.min_rate:
            limit = min(limit, started + min(self.stall, 10.0) + count / self.min_rate)
        return limit


class HardenedSocket(AssociationSocket):
    """A connected, non-blocking socket under pynetdicom's association.

    :param association: whose it is
    :param sock: connected and non-blocking, TLS already established
    :param max_pdu: the maximum PDU length that we announce, enforced on what comes
    :param pace: how slowly a PDU may come, and go
    :param deadline: monotonic time by which the association must be established
    """

    def __init__(
        self, association: HardenedAssociation, sock: socket.socket, *, max_pdu: int, pace: Pace, deadline: float | None
    ) -> None:
        self._association = association
        self._connected_socket = sock
        self.fault: Fault | None = None
        self.pace = pace
        self.deadline = deadline
        self._max_pdu = max_pdu
        self._body: int | None = None
        self._refusing = False
        self._linger_left = _LINGER_BYTES
        # What TLS has deciphered of the next header.
        self._ahead = b""
        self._hurry: float | None = None
        self._wake_lock = threading.Lock()
        self._wake_fd: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._sock_fd = sock.fileno()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if association.is_acceptor:
            super().__init__(association, client_socket=sock)
        else:
            # An address to bind to is asked for, and passed to our own _create_socket, which needs none.
            super().__init__(association, address=cast(Any, "connected"))

    def _create_socket(self, address: Any) -> socket.socket:
        # The requestor's hook of pynetdicom: the socket is connected already, by deadlines of ours.
        return self._connected_socket

    def connect(self, primitive: Any) -> None:
        """Confirm the connection, which stands already (PS3.8 AE-1)."""
        self._is_connected = True
        evt.trigger(self.assoc, evt.EVT_CONN_OPEN, {"address": primitive.address_info.as_tuple})
        primitive.result = "Evt2"
        self.provider_queue.put(primitive)
        self._ready.set()

    # -- called from any thread ---------------------------------------------------------------------------------------

    def wake(self, _: Any = None) -> None:
        """Wake the thread that waits in this socket."""
        with self._wake_lock:
            if self._wake_fd is not None:
                os.eventfd_write(self._wake_fd, 1)

    def hurry(self, seconds: float) -> None:
        """Give whatever is being read or written only so much longer."""
        self._hurry = time.monotonic() + seconds
        self.wake()

    def sever(self) -> None:
        """Cut the connection now: whoever waits in this socket comes back."""
        with contextlib.suppress(OSError):
            # The plain socket's shutdown: that of a TLS socket would drop its state under the reading thread.
            socket.socket.shutdown(self._connected_socket, socket.SHUT_RDWR)
        self.wake()

    def _shutdown_socket(self) -> None:
        # Called by pynetdicom to close, from more threads than one. Not before `dispose`: by then the number of the descriptor
        # could stand for another connection, which the upper layer's thread would go on waiting for, reading and cutting.
        self.sever()

    def dispose(self) -> None:
        """Give the descriptors back. The upper layer's thread must have ended."""
        with self._wake_lock:
            if self._wake_fd is not None:
                os.close(self._wake_fd)
                self._wake_fd = None
        self._connected_socket.close()
        self.socket = None

    # -- called from the upper layer's thread -------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection; the descriptor is given back by :meth:`dispose`."""
        super().close()
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._sock_fd)

    def _wait(self, events: int, until: float) -> bool:
        """Wait until the socket is ready for `events`, somebody wakes us, or the time is over; False when it is over."""
        remaining = until - time.monotonic()
        if remaining <= 0:
            return False
        if self._is_connected:
            self._poll.register(self._sock_fd, events)
        for fd, _ in self._poll.poll(remaining * 1000):
            if fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
        return True

    @property
    def ready(self) -> bool:
        """Whether there is something to read; waits up to a tick for it, for a wake-up, or for the close."""
        sock = self.socket
        if sock is None:
            # Closed: pynetdicom still goes round until it notices.
            time.sleep(0.001)
            return False
        if not self._is_connected:
            self._wait(0, time.monotonic() + TICK)
            return False
        # pynetdicom asks before it looks at the events that it has already: with one waiting, there is no time to wait.
        is_waiting = not self.event_queue.empty()
        if self._refusing:
            return False if is_waiting else self._linger(sock)
        # While its messages wait to be taken the peer waits too, in what it sends; we still send.
        has_room = self._association.dimse.inbox.has_room
        if has_room and isinstance(sock, ssl.SSLSocket) and (self._ahead or sock.pending()):
            return True
        self._poll.register(self._sock_fd, select.POLLIN if has_room else 0)
        found = False
        patience = _CLOSING if self.assoc.dul.state_machine.current_state == "Sta13" else TICK
        for fd, _ in self._poll.poll(0 if is_waiting else patience * 1000):
            if fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            else:
                found = True
        return self._decipher(sock) if found and isinstance(sock, ssl.SSLSocket) else found

    def _decipher(self, sock: ssl.SSLSocket) -> bool:
        """Whether what came over TLS holds anything of a PDU: session tickets, key updates and half a record do not."""
        try:
            self._ahead = sock.recv(_HEADER_LENGTH)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            self._wait(select.POLLOUT, time.monotonic() + TICK)
            return False
        except OSError as error:
            # Whoever reads next sees it, too, but for an alert: that is read once.
            if is_alert(error):
                self.fault = self.fault or Fault.TLS
            return True
        return True

    def _linger(self, sock: socket.socket) -> bool:
        """Read and forget for a moment: closing on unread bytes sends a reset, which overtakes our A-ABORT."""
        until = time.monotonic() + TICK
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._connected_socket, socket.SHUT_WR)
        scratch = bytearray(65_536)
        while self._linger_left > 0 and time.monotonic() < until:
            try:
                count = socket.socket.recv_into(sock, scratch)
            except BlockingIOError:
                self._wait(_RECV, until)
                continue
            except OSError:
                break
            if not count:
                break
            self._linger_left -= count
        return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Read a PDU's header, or the body that it announced.

        A header over its cap comes back with a type that does not exist: pynetdicom then aborts without reading on.

        :raises TimeoutError: when the peer stalls
        :raises OSError: when the connection breaks
        """
        if self._body is not None:
            self._body = None
            return self._read(nr_bytes)
        header = self._read(nr_bytes)
        if len(header) < 6:
            return header
        kind, _, length = struct.unpack(">BBL", header)
        cap = 4 if kind in _FIXED_PDUS else self._max_pdu if kind == 0x04 else _MAX_ASSOCIATE_PDU
        if not 1 <= kind <= 7 or length > cap:
            self.refuse(Fault.PROTOCOL)
            header[0] = 0xFF
        else:
            self._body = length
        return header

    def refuse(self, fault: Fault | None = None) -> None:
        """Take nothing more from the peer; what it has in flight is read and forgotten until we close."""
        self.fault = self.fault or fault
        self._refusing = True

    def _read(self, count: int) -> bytearray:
        sock = self.socket
        buffer = bytearray(count)
        if sock is None:
            return buffer[:0]
        view = memoryview(buffer)
        started = last = time.monotonic()
        got = len(self._ahead)
        view[:got] = self._ahead
        self._ahead = b""
        while got < count:
            try:
                read = sock.recv_into(view[got:])
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                events = select.POLLOUT if isinstance(error, ssl.SSLWantWriteError) else _RECV
                try:
                    self._wait_or_stall(events, started, last, got)
                except TimeoutError:
                    self._send_abort()
                    raise
                continue
            except OSError as error:
                self.fault = self.fault or _fault_of(error)
                raise
            if not read:
                self.fault = self.fault or Fault.CLOSED
                view.release()
                del buffer[got:]
                return buffer
            got += read
            last = time.monotonic()
            # A PDU may be longer in coming than a peer may be silent.
            self._association.dul._idle_timer.restart()
            self._acknowledge_at_once()
        return buffer

    def _wait_or_stall(self, events: int, started: float, last: float, count: int) -> None:
        until = self.pace.limit(started, last, count)
        for other in (self.deadline, self._hurry):
            if other is not None:
                until = min(until, other)
        if not self._wait(events, until):
            self.fault = self.fault or Fault.STALLED
            raise TimeoutError("the peer stalled inside a PDU")

    def _send_abort(self) -> None:
        """Send an A-ABORT past the state machine, which takes a peer that stalls for a connection that is closed."""
        # The acceptor that waits for a request closes without a word (PS3.8 AA-2).
        if self._association.is_requestor or self.deadline is None:
            with contextlib.suppress(OSError):
                self._connected_socket.send(encode_abort())

    def _acknowledge_at_once(self) -> None:
        # A sender with Nagle on waits for our delayed acknowledgement, 40 ms an object. The kernel forgets the option.
        if hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self._connected_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def send(self, bytestream: bytes) -> None:
        """Write a PDU; a peer that takes nothing for too long loses the connection."""
        sock = self.socket
        started = last = time.monotonic()
        sent = 0
        view = memoryview(bytestream)
        try:
            while sent < len(view):
                if sock is None:
                    raise ConnectionError("the connection is closed")
                try:
                    sent += sock.send(view[sent:])
                    last = time.monotonic()
                except (BlockingIOError, ssl.SSLWantWriteError):
                    self._wait_or_stall(select.POLLOUT | select.POLLHUP | select.POLLERR, started, last, sent)
                except ssl.SSLWantReadError:
                    self._wait_or_stall(_RECV, started, last, sent)
        except OSError as error:
            self.fault = self.fault or _fault_of(error)
            # Evt17: transport connection closed (PS3.8 Table 9-10).
            self.event_queue.put("Evt17")
        if self._hurry is not None:
            # An abort is waiting behind data that nobody wants any more.
            cast(Mailbox, self.provider_queue).drop(P_DATA)


def _fault_of(error: OSError) -> Fault:
    if isinstance(error, TimeoutError):
        return Fault.STALLED
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Fault.CLOSED
    if is_alert(error):
        return Fault.TLS
    if isinstance(error, ssl.SSLError):
        return Fault.PROTOCOL
    return Fault.RESET
