"""pynetdicom's threaded association, made safe for hostile peers and for a fleet.

pynetdicom runs two threads an association, the upper layer (DUL) and the reactor, that poll each millisecond, trust the
declared length of a PDU, and read without a deadline. The classes here replace, by subclassing, the parts that wait, read
and write:

- :class:`~asyncdicom.association.hardened_socket.HardenedSocket` waits with ``poll`` (any descriptor number) until there is
  something to do, gives every read and write a deadline, refuses a PDU over its cap before reading its body, and sends
  acknowledgements at once.
- :class:`HardenedDUL` is a daemon, has bounded queues on both sides, monotonic timers, and turns every way in which a peer can
  break its decoder into an abort.
- :class:`HardenedAssociation` ties them together. Its reactor sleeps until there is something to do.

They stand on private names of pynetdicom; ``tests/association/test_pynetdicom_names.py`` fails clearly when one moves.
"""

from __future__ import annotations

import logging
import queue
import struct
import threading
import time
from contextlib import suppress
from typing import Any, cast

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import TRANSITION_TABLE, StateMachine
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT, A_RELEASE, P_DATA
from pynetdicom.timer import Timer

from asyncdicom.association.hardened_socket import TICK, Fault, HardenedSocket, Inbox, Mailbox
from asyncdicom.upper_layer.context import MAX_CONTEXTS
from asyncdicom.upper_layer.message import MAX_COMMAND_LENGTH
from asyncdicom.upper_layer.pdu import UNLIMITED_FRAGMENT_LENGTH, fragment_length

logger = logging.getLogger(__name__)

# Identifiers hold patient data and cost their formatting whatever the level; the per-PDU log handlers cost as much again.
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
_config.LOG_HANDLER_LEVEL = "none"

# Messages, and their bytes, that may wait between the threads; beyond it the socket is not read, and the peer has to wait.
_INBOX_MESSAGES = 64
_INBOX_BYTES = 16 << 20
_OUTBOX_PDUS = 32
# What a peer takes that does not say what it takes, although it has to (PS3.8 D.1); every implementation takes this.
_UNSAID_MAX_LENGTH = 16_384
# Items and sub-items of one request: it may be long, for a token of user identity, but not made of nothing but headers.
_MAX_ITEMS = 8_192


class MonotonicTimer(Timer):
    """pynetdicom's timer, on the monotonic clock: a clock step must not end an association."""

    @property
    def remaining(self) -> float:
        """Seconds until it expires."""
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return float(self.timeout)
        return float(self.timeout) - (time.monotonic() - self._start_time)

    def start(self) -> None:
        """Start, or start again."""
        self._start_time = time.monotonic()
        self._end_time = None

    def stop(self) -> None:
        """Stop: it does not expire any more, also when it was about to."""
        self._start_time = self._end_time = None


class HardenedStateMachine(StateMachine):
    """pynetdicom's state machine; an action that fails ends the association instead of the thread alone."""

    def do_action(self, event: str) -> None:
        """Perform the action for an event (PS3.8 Table 9-10)."""
        dul = cast(HardenedDUL, self.dul)
        if event in _OURS and (event, self.current_state) not in TRANSITION_TABLE:
            # The peer was faster: it has released or aborted, or broken the protocol, before this went out. It is void.
            with suppress(queue.Empty):
                dul.outbox.get(False)
            return
        if event == "Evt19" or event in _UNEXPECTED.get(self.current_state, ()):
            dul.note_fault(Fault.PROTOCOL)
        try:
            super().do_action(event)
        except Exception:
            # A peer's bytes can make pynetdicom's decoder or encoder fail in ways beyond counting.
            dul.break_off()
            return
        if event == "Evt15" and isinstance(dul.socket, HardenedSocket):
            # Our A-ABORT is out. Whatever the peer still says is read and forgotten, so that it gets to see that.
            dul.socket.refuse()


# Primitives of ours: associate responses, data, release and abort (PS3.8 Table 9-10).
_OURS = {"Evt7", "Evt8", "Evt9", "Evt11", "Evt14", "Evt15"}
# AA-8: a PDU that is out of turn in this state (PS3.8 Table 9-10), so the fault is the peer's.
_UNEXPECTED = {
    "Sta3": {"Evt3", "Evt4", "Evt6", "Evt10", "Evt12", "Evt13"},
    "Sta5": {"Evt6", "Evt10", "Evt12", "Evt13"},
    "Sta6": {"Evt3", "Evt4", "Evt6", "Evt13"},
    "Sta7": {"Evt3", "Evt4", "Evt6"},
    "Sta2": {"Evt3", "Evt4", "Evt10", "Evt12", "Evt13"},
}


class HardenedDUL(DULServiceProvider):
    """pynetdicom's upper layer on a :class:`HardenedSocket`.

    :ivar received_abort: the first indication of an abort
    :ivar rejection: result, source and diagnostic of the A-ASSOCIATE-RJ that came last
    """

    def __init__(self, association: HardenedAssociation) -> None:
        super().__init__(association)
        # Its thread must not hold up the interpreter's exit, and its waiting is done by the socket.
        self.daemon = True
        self._run_loop_delay = 0
        self.received_abort: A_ABORT | A_P_ABORT | None = None
        self.rejection = (1, 1, 1)
        self.outbox = Mailbox(_OUTBOX_PDUS, on_put=self.wake)
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

    def wake(self, _: Any = None) -> None:
        """Wake its thread."""
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
        # pynetdicom takes no reason that the standard does not know; devices give some.
        match bytestream[0]:
            case 0x01 | 0x02:
                bytestream = tolerate(bytestream)
            case 0x03:
                self.rejection = (bytestream[7], bytestream[8], bytestream[9])
                bytestream[7:10] = bytes((bytestream[7] if bytestream[7] in (1, 2) else 1, 1, 1))
            case 0x07 if bytestream[8] not in (0, 2) or bytestream[9] > 6 or bytestream[9] == 3:
                bytestream[8:10] = bytes((bytestream[8] & 2, 0))
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

    :raises ValueError: when it is too short to be one, or has more items than one can have
    """
    if len(pdu) < 74:
        raise ValueError("an A-ASSOCIATE PDU has at least 74 bytes")
    fixed = bytearray(pdu[:74])
    for start in (10, 26):
        title = fixed[start : start + 16]
        cleaned = bytes(byte if 0x20 <= byte < 0x7F and byte != 0x5C else 0x3F if byte else 0x20 for byte in title)
        fixed[start : start + 16] = cleaned if cleaned.strip() else b"?".ljust(16)
    view = memoryview(pdu)
    contexts = count = 0
    offset = 74
    while offset + 4 <= len(view):
        kind, length = view[offset], int.from_bytes(view[offset + 2 : offset + 4], "big")
        end = offset + 4 + length
        if kind == 0x50 and end <= len(view):
            known, inside = _known_items(view[offset:end])
            fixed += known
            count += 1 + inside
        else:
            fixed += view[offset:end]
            contexts += kind in (0x20, 0x21)
            count += 1 + _count_items(view[offset + 8 : end])
        if contexts > MAX_CONTEXTS or count > _MAX_ITEMS:
            raise ValueError("more items than an A-ASSOCIATE PDU can have")
        offset = end
    fixed += view[offset:]
    fixed[2:6] = struct.pack(">L", len(fixed) - 6)
    return fixed


def _known_items(item: memoryview) -> tuple[bytearray, int]:
    """A user-information item without the sub-items that nobody knows, and how many it had."""
    kept = bytearray(item[:4])
    count = 0
    offset = 4
    while offset + 4 <= len(item):
        stop = offset + 4 + int.from_bytes(item[offset + 2 : offset + 4], "big")
        if item[offset] in _KNOWN_USER_ITEMS or stop > len(item):
            kept += item[offset:stop]
        offset = stop
        count += 1
    kept[2:4] = struct.pack(">H", len(kept) - 4)
    return kept, count


def _count_items(view: memoryview) -> int:
    count = offset = 0
    while offset + 4 <= len(view):
        offset += 4 + int.from_bytes(view[offset + 2 : offset + 4], "big")
        count += 1
    return count


class HardenedDIMSE(DIMSEServiceProvider):
    """pynetdicom's DIMSE provider with a bounded inbox and a cap on the size of a message.

    :param max_object_size: bytes of a dataset beyond which the association is aborted
    :ivar arrived: bytes of the message that is arriving, or that arrived last
    """

    def __init__(self, association: HardenedAssociation, max_object_size: int) -> None:
        super().__init__(association)
        self._association = association
        self._max_object_size = max_object_size
        self._context_id = 0
        self._command_length = 0
        self.arrived = 0
        self.inbox = Inbox(
            _INBOX_MESSAGES if association.is_requestor else 2, _INBOX_BYTES, self._arrived, association.dul.wake
        )
        self.msg_queue = self.inbox
        self._changed = threading.Event()

    @property
    def maximum_pdu_size(self) -> int:
        """The maximum length to send with, in bytes (PS3.8 D.1).

        Not simply what the peer announced: a peer that sets no limit must not have us make one PDU of a whole object, and
        fragments have an even length.

        :raises ProtocolError: when no message fits into what the peer announced
        """
        peer = self._association.acceptor if self._association.is_requestor else self._association.requestor
        announced = _UNSAID_MAX_LENGTH if peer.maximum_length is None else peer.maximum_length
        return min(fragment_length(announced), UNLIMITED_FRAGMENT_LENGTH) + 6

    def _arrived(self, _: Any) -> None:
        self._changed.set()

    def notify(self) -> None:
        """Wake the reactor."""
        self._changed.set()

    def let_go(self) -> None:
        """Nothing more will come: wake everybody who waits for a message."""
        self.inbox.close()
        self.inbox.put_over((None, None))
        self._changed.set()

    def wait(self, seconds: float) -> None:
        """Wait until a message or an indication arrives, at most so long."""
        if self.inbox.empty() and self.dul.to_user_queue.empty():
            self._changed.wait(seconds)
        self._changed.clear()

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take fragments (PS3.7 section 6.3.1). One P-DATA may hold the end of a message and the beginning of the next."""
        try:
            for context_id, data in primitive.presentation_data_value_list:
                fault = self._receive_fragment(context_id, data)
                if fault is not None:
                    self.cut(fault)
                    return
        except Exception:
            # Command sets that are not command sets fail inside the decoder in many ways.
            self.cut(Fault.PROTOCOL)

    def _receive_fragment(self, context_id: int, data: bytes) -> Fault | None:
        if self.message is None:
            self.message = DIMSEMessage()
            self.arrived = 0
            self._context_id = context_id
        # One byte of each fragment is the message control header (PS3.8 E.2).
        self.arrived += len(data) - 1
        if not data or context_id != self._context_id:
            return Fault.PROTOCOL
        message = self.message
        # It becomes the class of its command when that is complete.
        if type(message) is DIMSEMessage:
            self._command_length = self.arrived
            limit = MAX_COMMAND_LENGTH
        else:
            limit = self._command_length + self._max_object_size
        if self.arrived > limit:
            return Fault.TOO_LARGE
        fragment = P_DATA()
        fragment.presentation_data_value_list.append((context_id, data))
        if message.decode_msg(fragment, self._association):
            whole = message.message_to_primitive()
            self.message = None
            self.deliver(context_id, whole)
        return None

    def deliver(self, context_id: int, message: Any) -> None:
        """Hand a message over. A C-CANCEL is not: nothing that we do for peers can be cancelled."""
        if not isinstance(message, C_CANCEL):
            self.inbox.put_message(context_id, message, self.arrived)

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
        if self._sent_abort:
            # It is on its way: to cut the connection now would overtake it.
            self.transport.hurry(seconds)
        elif self.is_established:
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
        # Who calls this in pynetdicom has waited in vain as the requestor, as the acceptor it was asked for what it does not
        # do; what the peer does when it is told so is not the fault.
        if self.dul.received_abort is None and self.dul.peek_next_pdu() is None:
            self.dul.note_fault(Fault.STALLED if self.is_requestor else Fault.PROTOCOL)
        super()._abort_blocking(block)

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

    def answer_release(self) -> None:
        """Answer the peer's request for release, and wait until the answer is out (PS3.8 AR-4)."""
        self.acse.send_release(is_response=True)
        self.is_released = True
        self.kill()

    def close_down(self, seconds: float = 0.4) -> None:
        """Wait for the upper layer's thread to end, cut the connection if it does not, and give the descriptors back."""
        if self.dul.ident is not None:
            self.dul.join(seconds)
            if self.dul.is_alive():
                self.dul.kill_dul()
                self.transport.hurry(0)
                self.transport.sever()
                self.dul.join(seconds)
            if self.dul.is_alive():
                # A descriptor too many is better than one that is closed under a thread that uses it.
                logger.error("a thread of the upper layer does not end; its descriptors stay open")
                return
        self.transport.dispose()

    def _run_reactor(self) -> None:
        # pynetdicom's loop, but asleep until there is something to do.
        self._is_paused = False
        while not self._kill:
            self._is_paused = True
            self._reactor_checkpoint.wait()
            self._is_paused = False
            self.dimse.wait(TICK)
            context_id, message = self.dimse.get_msg(block=False)
            if message is not None and context_id is not None:
                self._serve_request(message, context_id)
                # The time that we took is not the peer's.
                self.dul._idle_timer.restart()
            # What was asked for before the release is answered before it, too (PS3.8 AR-7).
            if self.is_established and self.dimse.inbox.empty() and self.acse.is_release_requested():
                self.answer_release()
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
        self.dul.note_fault(Fault.STALLED)
        self.abort()
        self.kill()
