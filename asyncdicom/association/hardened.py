"""pynetdicom's threaded association, made safe for hostile peers and for a fleet.

pynetdicom runs two threads an association, the upper layer (DUL) and the reactor, that poll each millisecond, trust the
declared length of a PDU, and read without a deadline. The classes here replace, by subclassing, the parts that wait, read
and write:

- :class:`HardenedSocket` waits with ``poll`` (any descriptor number) until there is something to do, gives every read and
  write a deadline, refuses a PDU over its cap before reading its body, and sends acknowledgements at once.
- :class:`HardenedDUL` is a daemon, has bounded queues on both sides, monotonic timers, and turns every way in which a peer can
  break its decoder into an abort.
- :class:`HardenedAssociation` ties them together. Its reactor sleeps until there is something to do.

They stand on private names of pynetdicom; ``tests/association/test_pynetdicom_names.py`` fails clearly when one moves.
"""

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
from collections.abc import Callable
from enum import StrEnum
from typing import Any, cast

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT, A_RELEASE, P_DATA
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket

# Identifiers hold patient data and cost their formatting whatever the level; the per-PDU log handlers cost as much again.
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
_config.LOG_HANDLER_LEVEL = "none"

# How long a thread sleeps when there is nothing to do: only timers need it to wake at all.
_TICK = 0.25
# The peer closes after a release or a rejection (PS3.8 AR-3); DCMTK waits for us to do it, so we do, this much later.
_CLOSING = 0.01
# Messages that may wait between the threads; beyond it the socket is not read, and the peer has to wait.
_INBOX_MESSAGES = 64
_OUTBOX_PDUS = 32
_MAX_ASSOCIATE_PDU = 1 << 20
# Room for the command set before the dataset whose size is capped.
_MAX_COMMAND_SET = 4_096
_FIXED_PDUS = {0x03, 0x05, 0x06, 0x07}
_RECV = select.POLLIN | select.POLLHUP | select.POLLERR
# What a refused peer may still have in flight before we close: reading it lets our A-ABORT arrive instead of a reset.
_LINGER_BYTES = 1 << 20


class Fault(StrEnum):
    """Why the transport or the protocol broke down, from our side of the wire."""

    CLOSED = "closed"
    RESET = "reset"
    STALLED = "stalled"
    PROTOCOL = "protocol"
    TOO_LARGE = "too_large"


class MonotonicTimer(Timer):
    """pynetdicom's timer, on the monotonic clock: a clock step must not end an association."""

    @property
    def remaining(self) -> float:
        """Seconds until it expires."""
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return float(self.timeout)
        now = time.monotonic() if self._end_time is None else self._end_time
        return float(self.timeout) - (now - self._start_time)

    def start(self) -> None:
        """Start, or start again."""
        self._start_time = time.monotonic()
        self._end_time = None

    def stop(self) -> None:
        """Stop."""
        self._end_time = time.monotonic()


class Mailbox(queue.Queue[Any]):
    """A bounded queue between two threads that can be closed: then nobody waits on it any more.

    :param maxsize: items that may wait
    :param on_put: called after each item, outside of the lock
    """

    def __init__(self, maxsize: int = 0, on_put: Callable[[Any], None] | None = None) -> None:
        super().__init__(maxsize)
        self._on_put = on_put

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
            self.maxsize = 1 << 60
            self.not_full.notify_all()

    def drop(self, kind: type) -> None:
        """Remove the waiting items of a type."""
        with self.mutex:
            kept = [item for item in self.queue if not isinstance(item, kind)]
            self.queue.clear()
            self.queue.extend(kept)
            self.not_full.notify_all()


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
        self._connected_socket = sock
        self.fault: Fault | None = None
        self.pace = pace
        self.deadline = deadline
        self._max_pdu = max_pdu
        self._body: int | None = None
        self._refusing = False
        self._linger_left = _LINGER_BYTES
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

    def dispose(self) -> None:
        """Give the descriptors back. The upper layer's thread must have ended."""
        with self._wake_lock:
            if self._wake_fd is not None:
                os.close(self._wake_fd)
                self._wake_fd = None
        self._connected_socket.close()
        self.socket = None

    # -- called from the upper layer's thread -------------------------------------------------------------------------

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
            self._wait(0, time.monotonic() + _TICK)
            return False
        # pynetdicom asks before it looks at the events that it has already: with one waiting, there is no time to wait.
        is_waiting = not self.event_queue.empty()
        if self._refusing:
            return False if is_waiting else self._linger(sock)
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            return True
        self._poll.register(self._sock_fd, select.POLLIN)
        found = False
        patience = _CLOSING if self.assoc.dul.state_machine.current_state == "Sta13" else _TICK
        for fd, _ in self._poll.poll(0 if is_waiting else patience * 1000):
            if fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            else:
                found = True
        return found

    def _linger(self, sock: socket.socket) -> bool:
        """Read and forget for a moment: closing on unread bytes sends a reset, which overtakes our A-ABORT."""
        until = time.monotonic() + _TICK
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

    def refuse(self, fault: Fault) -> None:
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
        got = 0
        while got < count:
            try:
                read = sock.recv_into(view[got:])
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait_or_stall(_RECV, started, last, got)
                continue
            except ssl.SSLWantWriteError:
                self._wait_or_stall(select.POLLOUT, started, last, got)
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
    if isinstance(error, ssl.SSLError):
        return Fault.PROTOCOL
    return Fault.RESET


class HardenedStateMachine(StateMachine):
    """pynetdicom's state machine; an action that fails ends the association instead of the thread alone."""

    def do_action(self, event: str) -> None:
        """Perform the action for an event (PS3.8 Table 9-10)."""
        dul = cast(HardenedDUL, self.dul)
        if event == "Evt19" or event in _UNEXPECTED.get(self.current_state, ()):
            dul.note_fault(Fault.PROTOCOL)
        try:
            super().do_action(event)
        except Exception:
            # A peer's bytes can make pynetdicom's decoder or encoder fail in ways beyond counting.
            dul.break_off()


# AA-8: a PDU that is out of turn in this state (PS3.8 Table 9-10), so the fault is the peer's.
_UNEXPECTED = {
    "Sta3": {"Evt3", "Evt4", "Evt6", "Evt10", "Evt12", "Evt13"},
    "Sta5": {"Evt6", "Evt10", "Evt12", "Evt13"},
    "Sta6": {"Evt3", "Evt4", "Evt6", "Evt13"},
    "Sta7": {"Evt3", "Evt4", "Evt6"},
    "Sta2": {"Evt3", "Evt4", "Evt10", "Evt12", "Evt13"},
}


class HardenedDUL(DULServiceProvider):
    """pynetdicom's upper layer on a :class:`HardenedSocket`."""

    def __init__(self, association: HardenedAssociation) -> None:
        super().__init__(association)
        # Its thread must not hold up the interpreter's exit, and its waiting is done by the socket.
        self.daemon = True
        self._run_loop_delay = 0
        self.received_abort: A_ABORT | A_P_ABORT | None = None
        self.outbox = Mailbox(_OUTBOX_PDUS, on_put=self._wake)
        self.indications = Mailbox(on_put=self._indicated)
        self.to_provider_queue = self.outbox
        self.to_user_queue = self.indications
        self.artim_timer = MonotonicTimer(30)
        self._idle_timer = MonotonicTimer(60)
        self.state_machine = HardenedStateMachine(self)
        self._breaking = False

    @property
    def association(self) -> HardenedAssociation:
        """Whose upper layer this is."""
        return cast(HardenedAssociation, self.assoc)

    def _wake(self, _: Any) -> None:
        if isinstance(self.socket, HardenedSocket):
            self.socket.wake()

    def _indicated(self, primitive: Any) -> None:
        """An indication for the user: whoever waits for a message must see it."""
        dimse = self.association.dimse
        if isinstance(primitive, A_ABORT | A_P_ABORT):
            self.received_abort = self.received_abort or primitive
        if isinstance(primitive, A_ABORT | A_P_ABORT) or (isinstance(primitive, A_RELEASE) and primitive.result is None):
            # Not every path of the state machine tells those who wait for a message.
            dimse.inbox.put_over((None, None))
        dimse.notify()

    def note_fault(self, fault: Fault) -> None:
        """Remember the first thing that went wrong."""
        if isinstance(self.socket, HardenedSocket):
            self.socket.fault = self.socket.fault or fault

    def _decode_pdu(self, bytestream: bytearray) -> Any:
        if bytestream[0] in (0x01, 0x02):
            bytestream = tolerate(bytestream)
        return super()._decode_pdu(bytestream)

    def break_off(self) -> None:
        """Abort without the state machine, which is no longer to be trusted."""
        self.note_fault(Fault.PROTOCOL)
        sock = self.socket
        association = self.association
        if isinstance(sock, HardenedSocket) and not self._breaking:
            self._breaking = True
            sock.hurry(0.5)
            pdu = A_ABORT_RQ()
            pdu.source = 0x02
            pdu.reason_diagnostic = 0x00
            if sock.socket is not None and sock._is_connected:
                sock.send(pdu.encode())
            sock.sever()
        association.is_aborted = True
        association.is_established = False
        aborted = A_P_ABORT()
        aborted.provider_reason = 0x00
        self.indications.put_over(aborted)
        self._indicated(aborted)
        self.kill_dul()

    def run_reactor(self) -> None:
        """Run until the association is over, and let go of everybody who waits for this thread."""
        try:
            super().run_reactor()
        finally:
            self.outbox.close()
            self.indications.put_over(None)
            self.association.dimse.let_go()


_KNOWN_USER_ITEMS = range(0x51, 0x5A)


def tolerate(pdu: bytes | bytearray) -> bytearray:
    """Return an A-ASSOCIATE-RQ or -AC without what pynetdicom's decoder stumbles over.

    Unknown user-information sub-items are to be ignored (PS3.8 D.2). Characters that an AE title may not have become ``?``:
    the association is then rejected by its title instead of the connection being dropped.
    """
    fixed = bytearray(pdu)
    for start in (10, 26):
        title = fixed[start : start + 16]
        cleaned = bytes(byte if 0x20 <= byte < 0x7F and byte != 0x5C else 0x3F if byte else 0x20 for byte in title)
        fixed[start : start + 16] = cleaned if cleaned.strip() else b"?".ljust(16)
    offset = 74
    while offset + 4 <= len(fixed):
        kind, length = fixed[offset], int.from_bytes(fixed[offset + 2 : offset + 4], "big")
        end = offset + 4 + length
        if kind == 0x50 and end <= len(fixed):
            kept = bytearray()
            inner = offset + 4
            while inner + 4 <= end:
                stop = inner + 4 + int.from_bytes(fixed[inner + 2 : inner + 4], "big")
                if fixed[inner] in _KNOWN_USER_ITEMS or stop > end:
                    kept += fixed[inner:stop]
                inner = stop
            fixed[offset + 2 : end] = struct.pack(">H", len(kept)) + kept
            end = offset + 4 + len(kept)
        offset = end
    fixed[2:6] = struct.pack(">L", len(fixed) - 6)
    return fixed


class HardenedDIMSE(DIMSEServiceProvider):
    """pynetdicom's DIMSE provider with a bounded inbox and a cap on the size of a message.

    :param max_object_size: bytes of a dataset beyond which the association is aborted
    :ivar arrived: bytes of the message that is arriving, or that arrived last
    """

    def __init__(self, association: HardenedAssociation, max_object_size: int) -> None:
        super().__init__(association)
        self._max_object_size = max_object_size
        self.arrived = 0
        self.inbox = Mailbox(_INBOX_MESSAGES if association.is_requestor else 2, on_put=self._arrived)
        self.msg_queue = self.inbox
        self._changed = threading.Event()

    def _arrived(self, _: Any) -> None:
        self._changed.set()

    def notify(self) -> None:
        """Wake the reactor."""
        self._changed.set()

    def let_go(self) -> None:
        """Nothing more will come: wake everybody who waits for a message, or for room."""
        self.inbox.close()
        self.inbox.put_over((None, None))
        self._changed.set()

    def wait(self, seconds: float) -> None:
        """Wait until a message or an indication arrives, at most so long."""
        if self.inbox.empty() and self.dul.to_user_queue.empty():
            self._changed.wait(seconds)
        self._changed.clear()

    def receive_primitive(self, primitive: Any) -> None:
        """Take fragments of a message (PS3.7 section 6.3.1)."""
        if self.message is None:
            self.arrived = 0
        # One byte of each fragment is the message control header (PS3.8 E.2).
        self.arrived += sum(len(data) - 1 for _, data in primitive.presentation_data_value_list)
        if self.arrived > self._max_object_size + _MAX_COMMAND_SET:
            self.cut(Fault.TOO_LARGE)
            return
        try:
            super().receive_primitive(primitive)
        except Exception:
            # Command sets that are not command sets fail inside the decoder in many ways.
            self.cut(Fault.PROTOCOL)

    def cut(self, fault: Fault) -> None:
        """End the association: the message that is arriving is no good."""
        self.message = None
        sock = self.dul.socket
        if isinstance(sock, HardenedSocket):
            sock.refuse(fault)
        # Evt19: unrecognized or invalid PDU; the state machine aborts.
        self.dul.event_queue.put("Evt19")


class HardenedAssociation(Association):
    """pynetdicom's association on hardened parts.

    :param ae: the application entity
    :param mode: ``requestor`` or ``acceptor``
    :param max_object_size: bytes of the largest dataset to take
    """

    dimse: HardenedDIMSE
    dul: HardenedDUL

    def __init__(self, ae: ApplicationEntity, mode: str, *, max_object_size: int) -> None:
        super().__init__(ae, mode)
        self.dul = HardenedDUL(self)
        self.dimse = self._make_dimse(max_object_size)
        # The timeouts were set on the parts that have just been replaced.
        self.acse_timeout = ae.acse_timeout
        self.network_timeout = ae.network_timeout

    def _make_dimse(self, max_object_size: int) -> HardenedDIMSE:
        return HardenedDIMSE(self, max_object_size)

    @property
    def transport(self) -> HardenedSocket:
        """The socket."""
        sock = self.dul.socket
        if not isinstance(sock, HardenedSocket):
            raise RuntimeError("the association has no hardened socket yet")
        return sock

    @property
    def fault(self) -> Fault | None:
        """Why it broke down, as far as that was on our side of the wire."""
        return self.transport.fault

    def request_abort(self, seconds: float = 0.3) -> None:
        """Ask for an A-ABORT from any thread, without waiting; everybody who waits for the peer comes back at once."""
        if self.is_established and not self._sent_abort:
            self._sent_abort = True
            self.transport.hurry(seconds)
            abort = A_ABORT()
            abort.abort_source = 0x00
            self.dul.outbox.put_over(abort)
            self.transport.wake()
        else:
            self.transport.sever()
        self.is_aborted = True
        self.is_established = False
        gone = A_P_ABORT()
        gone.provider_reason = 0x00
        self.dul.indications.put_over(gone)
        self.dimse.let_go()

    def _abort_blocking(self, block: bool = True) -> None:
        # Whoever calls this in pynetdicom has waited in vain; what the peer does when it is told so is not the fault.
        if self.dul.received_abort is None and self.dul.peek_next_pdu() is None:
            self.dul.note_fault(Fault.STALLED)
        super()._abort_blocking(block)

    def _check_received_status(self, rsp: Any) -> Any:
        if not rsp.is_valid_response:
            self.dul.note_fault(Fault.PROTOCOL)
        return super()._check_received_status(rsp)

    def kill(self) -> None:
        """End the association's threads; the state machine gets a moment to reach its end first."""
        self._reactor_checkpoint.set()
        self._kill = True
        self.is_established = False
        self._is_paused = True
        until = time.monotonic() + 2.0
        # The state machine tells nobody when it is idle: it is asked, at first often.
        while self.dul.is_alive() and time.monotonic() < until:
            if self.dul.state_machine.current_state == "Sta1":
                break
            self.dul.join(0.001)
        self.dul.kill_dul()
        self.transport.wake()

    def close_down(self, seconds: float = 1.0) -> None:
        """Wait for the upper layer's thread to end, cut the connection if it does not, and give the descriptors back."""
        if self.dul.ident is not None:
            self.dul.join(seconds)
            if self.dul.is_alive():
                self.dul.kill_dul()
                self.transport.hurry(0)
                self.transport.sever()
                self.dul.join(seconds)
        self.transport.dispose()

    def _run_reactor(self) -> None:
        # pynetdicom's loop, but asleep until there is something to do.
        self._is_paused = False
        while not self._kill:
            self._is_paused = True
            self._reactor_checkpoint.wait()
            self._is_paused = False
            self.dimse.wait(_TICK)
            context_id, message = self.dimse.get_msg(block=False)
            if message is not None and context_id is not None:
                self._serve_request(message, context_id)
                # The time that we took is not the peer's.
                self.dul._idle_timer.restart()
            if self.is_established and self.acse.is_release_requested():
                self.acse.send_release(is_response=True)
                self.is_released = True
                self.is_established = False
                evt.trigger(self, evt.EVT_RELEASED, {})
                self.kill()
                return
            if self.acse.is_aborted():
                self.dul.receive_pdu(wait=False)
                self.is_aborted = True
                self.is_established = False
                evt.trigger(self, evt.EVT_ABORTED, {})
                self.kill()
                return
            if not self.dul.is_alive():
                self.kill()
                return
            if self.dul.idle_timer_expired():
                self.on_idle()
                return

    def on_idle(self) -> None:
        """Nothing came for the network timeout."""
        self.abort()
        self.kill()
