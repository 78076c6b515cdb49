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
import threading
import time
from contextlib import suppress
from typing import Any, cast

from pynetdicom import _config, evt
from pynetdicom.acse import ACSE
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import TRANSITION_TABLE, StateMachine
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT, A_RELEASE, P_DATA
from pynetdicom.timer import Timer

from asyncdicom.association.hardened_socket import TICK, Fault, HardenedSocket, Inbox, Mailbox
from asyncdicom.association.tolerance import tolerate
from asyncdicom.errors import AssociationAborted
from asyncdicom.upper_layer import negotiation
from asyncdicom.upper_layer.message import MAX_COMMAND_LENGTH, Command, Message, decode_command
from asyncdicom.upper_layer.negotiation import AssociateAccept, AssociateRequest
from asyncdicom.upper_layer.pdu import UNLIMITED_FRAGMENT_LENGTH, decode_abort, fragment_length

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

    :ivar asked: the A-ASSOCIATE-RQ that was received, as it came: what pynetdicom gets of it is mended
    :ivar answer: the A-ASSOCIATE-AC that was received, likewise
    :ivar received_abort: the first indication of an abort
    :ivar peer_abort: what the A-ABORT that was received says
    :ivar rejection: result, source and diagnostic of the A-ASSOCIATE-RJ that came last
    """

    def __init__(self, association: HardenedAssociation) -> None:
        super().__init__(association)
        # Its thread must not hold up the interpreter's exit, and its waiting is done by the socket.
        self.daemon = True
        self._run_loop_delay = 0
        self.asked: AssociateRequest | None = None
        self.answer: AssociateAccept | None = None
        self.received_abort: A_ABORT | A_P_ABORT | None = None
        self.peer_abort: AssociationAborted | None = None
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
            case 0x01:
                mended = tolerate(bytestream)
                self.asked = self.asked or negotiation.decode_request(bytes(bytestream[6:]))
                bytestream = mended
            case 0x02:
                mended = tolerate(bytestream)
                self.answer = self.answer or negotiation.decode_accept(bytes(bytestream[6:]))
                bytestream = mended
            case 0x03:
                self.rejection = (bytestream[7], bytestream[8], bytestream[9])
                bytestream[7:10] = bytes((bytestream[7] if bytestream[7] in (1, 2) else 1, 1, 1))
            case 0x07:
                self.peer_abort = self.peer_abort or decode_abort(memoryview(bytes(bytestream[6:])))
                if bytestream[8] not in (0, 2) or bytestream[9] > 6 or bytestream[9] == 3:
                    bytestream[8:10] = bytes((bytestream[8] & 2, 0))
        return super()._decode_pdu(bytestream)

    def _send(self, pdu: Any) -> None:
        if not isinstance(pdu, A_ASSOCIATE_AC) or self.asked is None:
            super()._send(pdu)
        elif isinstance(self.socket, HardenedSocket):
            # Titles go back as they came (PS3.8 Table 9-17), and not as pynetdicom could take them.
            encoded = bytearray(pdu.encode())
            titles = (self.asked.called_ae_title, self.asked.calling_ae_title)
            encoded[10:42] = b"".join(title.encode("latin-1").ljust(16) for title in titles)
            self.socket.send(bytes(encoded))

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


class HardenedACSE(ACSE):
    """pynetdicom's association control."""

    def send_abort(self, source: int) -> None:
        """Abort, as the user that it is: what the provider aborts, the state machine does (PS3.8 Table 9-10)."""
        super().send_abort(0x00)


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
        # The command set of the message that is arriving, once it is whole.
        self._command: Command | None = None
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
        if not primitive.presentation_data_value_list:
            self.cut(Fault.PROTOCOL)
            return
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
            self._command = None
        # One byte of each fragment is the message control header (PS3.8 E.2).
        self.arrived += len(data) - 1
        if not data or context_id != self._context_id or not context_id & 1:
            return Fault.PROTOCOL
        message = self.message
        if bool(data[0] & 1) != (self._command is None):
            # A command set where a dataset is due, or the other way round.
            return Fault.PROTOCOL
        if self._command is None:
            self._command_length = self.arrived
            limit = MAX_COMMAND_LENGTH
        else:
            limit = self._command_length + self._max_object_size
        if self.arrived > limit:
            return Fault.TOO_LARGE
        if data[0] & 3 == 3:
            # pynetdicom takes what it can of a command set that is cut, or has in it what does not belong there.
            self._command = decode_command(message.encoded_command_set.getvalue() + data[1:])
        fragment = P_DATA()
        fragment.presentation_data_value_list.append((context_id, data))
        if message.decode_msg(fragment, self._association) and self._command is not None:
            self.message = None
            dataset = message.data_set if self._command.has_dataset else None
            # Its value is its own buffer, and not a copy; a view of the stream itself is more than the garbage collector of
            # Python 3.13 can take apart.
            self.deliver(Message(context_id, self._command, None if dataset is None else memoryview(dataset.getvalue())))
        return None

    def deliver(self, message: Message) -> None:
        """Hand a message over."""
        self.inbox.put_message(message, self.arrived)

    def send_message(self, context_id: int, primitive: Any, has_empty_dataset: bool = False) -> None:
        """Send a message.

        :param has_empty_dataset: whether its dataset has no bytes: pynetdicom announces such a one and sends nothing of it
        """
        self.send_msg(primitive, context_id)
        if has_empty_dataset:
            last = P_DATA()
            last.presentation_data_value_list.append((context_id, b"\x02"))
            self.dul.send_pdu(last)

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
        self.acse = HardenedACSE(self)
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
