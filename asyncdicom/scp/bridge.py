"""One association served by engine ``pynetdicom``: its two threads, bridged to the loop for every instance."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Container, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import anyio
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA, UserIdentityNegotiation
from pynetdicom.presentation import PresentationContext as RawContext
from pynetdicom.transport import AddressInformation

from asyncdicom.association.hardened import HardenedACSE, HardenedAssociation, HardenedDIMSE
from asyncdicom.association.hardened_socket import Fault, HardenedSocket, Pace
from asyncdicom.association.primitives import to_primitive
from asyncdicom.association.received import Received
from asyncdicom.association.workers import workers
from asyncdicom.background import to_its_end
from asyncdicom.elements import Buffer
from asyncdicom.errors import ProtocolError
from asyncdicom.modality import UserIdentity
from asyncdicom.scp.handler import UNHANDLED_EXCEPTION
from asyncdicom.scp.identity import NOT_BELIEVED, Refusal, response_to
from asyncdicom.scp.requests import CANNOT_UNDERSTAND, NOT_AUTHORIZED, names_instance, status_without_instance
from asyncdicom.scp.served import Door, ServedPeer
from asyncdicom.scp.services import MAX_DATASET, PROCESSING_FAILURE, RESOURCE_LIMITATION, Answer, Operation, Service
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation
from asyncdicom.upper_layer.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from asyncdicom.upper_layer.message import Command, CommandField, Message
from asyncdicom.upper_layer.negotiation import ContextResult, Result

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A peer in the middle of a message has so long, in seconds, before its rate counts.
_RATE_GRACE = 10.0


class ServedAE(ApplicationEntity):
    """Our application entity; who may in, and how many, is decided at the door."""

    @property
    def active_associations(self) -> list[Any]:
        """None: pynetdicom would go through every thread of the process for each request."""
        return []


class ServedDIMSE(HardenedDIMSE):
    """Takes fragments within the budget of bytes in flight and at the minimum rate."""

    def __init__(self, association: ServedAssociation, max_object_size: int) -> None:
        super().__init__(association, max_object_size)
        self._served = association
        # By when more of the message that is arriving must be here.
        self._due = 0.0
        # Of each message that is complete and not yet answered: its bytes, and when its last fragment came.
        self.complete: deque[tuple[int, float]] = deque()

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take fragments of messages (PS3.7 section 6.3.1)."""
        if self.message is not None and time.monotonic() > self._due:
            self.cut(Fault.TOO_SLOW)
            return
        began = time.monotonic()
        # One byte of each fragment is the message control header (PS3.8 E.2).
        size = sum(max(0, len(data) - 1) for _, data in primitive.presentation_data_value_list)
        door = self._served.door
        if not door.ingest.budget.take(self._served, size, gone=self._served.is_gone_after_all):
            return
        now = time.monotonic()
        if self.message is None:
            self._due = now + _RATE_GRACE
        else:
            # The time that we took is not the peer's.
            self._due += now - began
        if door.min_rate:
            # What came fast earns time; but no more than it takes to be silent once and then to send one PDU slowly, or a fast
            # beginning would let a peer hold its part of the budget for hours.
            longest = max(_RATE_GRACE, door.idle_timeout) + door.max_pdu / door.min_rate
            self._due = min(self._due + size / door.min_rate, now + longest)
        else:
            self._due = float("inf")
        super().receive_primitive(primitive)

    def deliver(self, message: Message) -> None:
        """Hand a message over; what is not handed over is not held."""
        if message.command.field == CommandField.C_CANCEL_RQ and message.context_id in self._served._accepted_cx:
            # Nothing that we do for peers can be cancelled.
            self._served.door.ingest.budget.give_back(self._served, self.arrived)
            return
        # Before it is handed over: the reactor looks for it as soon as it has the message.
        self.complete.append((self.arrived, time.monotonic()))
        super().deliver(message)


class ServedACSE(HardenedACSE):
    """Says so when a presentation context is refused because of who asks.

    :ivar forbidden: the IDs of the contexts that are refused so
    """

    forbidden: Container[int] = ()

    def send_accept(self) -> None:
        """Send the A-ASSOCIATE-AC."""
        for context in self.assoc.rejected_contexts:
            if context.context_id in self.forbidden:
                context.result = int(Result.USER_REJECTION)
        super().send_accept()


class ServedAssociation(HardenedAssociation):
    """An accepted association.

    :param ae: our application entity
    :param door: what decides and what takes the instances
    :param peer: who is there
    :param loop: where the handlers run
    """

    acse: ServedACSE
    dimse: ServedDIMSE

    def __init__(self, ae: ApplicationEntity, door: Door, peer: ServedPeer, loop: asyncio.AbstractEventLoop) -> None:
        self.door = door
        self.peer = peer
        self.ended = asyncio.Event()
        self._loop = loop
        self._handling: concurrent.futures.Future[Any] | None = None
        self._gave_up = False
        super().__init__(ae, "acceptor", max_object_size=door.max_object_size)
        self.acse = ServedACSE(self)
        self.daemon = True
        self.name = "AcceptorThread@asyncdicom"
        self.bind(evt.EVT_ASYNC_OPS, _one_operation_at_a_time)

    def _make_dimse(self, max_object_size: int) -> HardenedDIMSE:
        return ServedDIMSE(self, max_object_size)

    def is_gone(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self.is_aborted or self._kill or self.transport.fault is not None

    def is_gone_after_all(self) -> bool:
        """Whether it ended while it waited for us: that counts neither as idleness nor as slowness of the peer."""
        self.dul._idle_timer.restart()
        return self.is_gone()

    @property
    def is_busy(self) -> bool:
        """Whether a message is arriving, waiting or being handled."""
        return self.dimse.message is not None or bool(self.dimse.complete) or self._handling is not None

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        # A loop that is closed, with a handler of the user's still at work, has nobody left who could be told.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    # -- on the reactor's thread --------------------------------------------------------------------------------------

    def run_reactor(self) -> None:
        """Serve the association from its request to its end."""
        try:
            self._serve()
        except Exception as error:
            logger.error("an association ended by a fault of ours: %s", type(error).__name__)
            logger.debug("traceback", exc_info=True)
            self.request_abort()
        finally:
            self._kill = True
            self.door.ingest.budget.give_back(self)
            self._tell(self.door.ingest.answered)
            self._tell(self.ended.set)

    def _serve(self) -> None:
        self.dul.start()
        self._started_dul = True
        self._dul_ready.wait()
        request: Any = self.dul.receive_pdu(wait=True, timeout=self.acse_timeout)
        if not isinstance(request, A_ASSOCIATE):
            # Silence, half a request, garbage, or a load balancer that looked in and left.
            if self.transport.fault is Fault.STALLED or (self.transport.fault is None and self._is_late()):
                self._tell(self.door.refused, "artim", self.peer)
            self.transport.hurry(0.3)
            self.dul.join(1.0)
            return
        self.requestor.primitive = request
        # What pynetdicom has of it is mended.
        asked = self.dul.asked
        if asked is None or not asked.protocol_version & negotiation.PROTOCOL_VERSION:
            self.acse.send_reject(*negotiation.PROTOCOL_VERSION_NOT_SUPPORTED)
            self._tell(self.door.refused, "protocol_version", self.peer)
            self.dul.join(1.0)
            return
        self.peer.calling_ae_title, self.peer.called_ae_title = asked.calling_ae_title.strip(), asked.called_ae_title.strip()
        try:
            _ = self.dimse.maximum_pdu_size
        except ProtocolError:
            self._abort_for_protocol_error()
            self.dul.join(1.0)
            return
        refusal = self.door.decide(self.peer)
        if refusal is not None:
            reason, answer = refusal
            self.acse.send_reject(*answer)
            self._tell(self.door.refused, reason, self.peer)
            self.dul.join(1.0)
            return
        if self.door.identities is not None and not self._identify(asked.user_identity):
            self.dul.join(1.0)
            return
        try:
            results = self.door.results_of(asked.contexts, self.peer)
            proposed = request.presentation_context_definition_list
            self.acceptor.supported_contexts = _supported(proposed, results, self.door.sop_classes)
            self.acse.forbidden = {one.context_id for one in results if one.result == Result.USER_REJECTION}
            self.acse.negotiate_association()
            if not self.is_established:
                return
            self.transport.deadline = None
            self._tell(self.door.established, self.peer)
            try:
                self._run_reactor()
            finally:
                self._tell(self.door.closed, self.peer, self._ending())
        finally:
            self.door.leave()

    def _identify(self, identity: UserIdentity | None) -> bool:
        """Have a user identity verified; False when it was rejected, or the service gave up: its place is free again then."""
        is_believed = False
        try:
            refusal = self._have_handled(self.door.identify(identity, self.peer), Refusal("user_identity", NOT_BELIEVED))
            is_believed = refusal is None and not self._gave_up
        finally:
            # Before the peer has its answer, and comes again.
            if not is_believed:
                self.door.leave()
        if refusal is not None:
            self.acse.send_reject(*refusal.answer)
            self._tell(self.door.refused, refusal.reason, self.peer, refusal.detail)
        if not is_believed:
            return False
        response = response_to(identity, self.door.identities)
        if response is not None:
            # pynetdicom's own answers some types alone.
            item = UserIdentityNegotiation()
            item.server_response = response
            self.acceptor.add_negotiation_item(item)
        return True

    def _ending(self) -> str | None:
        """Why it was aborted; None after a release."""
        if self.is_released:
            return None
        match self.transport.fault:
            case Fault.STALLED:
                return "idle" if not self.is_busy else "stalled"
            case Fault.TOO_SLOW:
                return "stalled"
            case Fault.CLOSED | Fault.RESET | Fault.TLS:
                return "connection_lost"
            case Fault.TOO_LARGE:
                return "too_large"
            case Fault.PROTOCOL:
                return "protocol_error"
        return "drain" if self._gave_up else "peer"

    def _is_late(self) -> bool:
        deadline = self.transport.deadline
        return deadline is not None and time.monotonic() >= deadline

    def _abort_for_protocol_error(self) -> None:
        self.dul.note_fault(Fault.PROTOCOL)
        self.acse.send_abort(0x00)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if not self.is_established:
            # It waited behind one that ended the association: nobody waits for its answer.
            return
        try:
            context = self._accepted_cx.get(context_id)
            if context is None:
                raise ProtocolError("a message on a presentation context that was not accepted")
            elements: Mapping[str, Any] = {}
            service = self.door.services.get((str(context.abstract_syntax), msg.command.field))
            if service is not None:
                status, elements = self._perform(service, msg.command, msg.data, str(context.transfer_syntax[0]))
            elif msg.command.field != CommandField.C_STORE_RQ:
                status = status_without_instance(msg.command, str(context.abstract_syntax))
            elif "MessageID" not in msg.command:
                raise ProtocolError("what cannot be answered is not kept")
            elif "store" not in self.peer.operations:
                # It gets no context for it, but can send a C-STORE on any other one.
                status = NOT_AUTHORIZED
                self._tell(self.door.store_refused, self.peer, NOT_AUTHORIZED)
            elif msg.data and names_instance(msg.command):
                status = self._take(msg.command, msg.data, str(context.transfer_syntax[0]))
            else:
                status = CANNOT_UNDERSTAND
            self._give_back()
            if status is not None and self.is_established:
                self.dimse.send_message(context_id, to_primitive(dimse.response(msg.command, status, **elements), None))
        except ProtocolError:
            self._abort_for_protocol_error()

    def _take(self, command: Command, data: Buffer, transfer_syntax: str) -> int | None:
        """Have the instance handled on the loop, and wait for its status; None when the service gave up on it."""
        received = Received(
            data=data,
            sop_class_uid=command.sop_class_uid,
            sop_instance_uid=command.sop_instance_uid,
            transfer_syntax_uid=transfer_syntax,
            calling_ae_title=self.peer.calling_ae_title,
            called_ae_title=self.peer.called_ae_title,
            peer_address=self.peer.address,
            move_originator_ae_title=command.get("MoveOriginatorApplicationEntityTitle") or None,
            move_originator_message_id=command.get("MoveOriginatorMessageID"),
        )
        started = self.dimse.complete[0][1] if self.dimse.complete else time.monotonic()
        return self._have_handled(self.door.ingest.take(received, started), UNHANDLED_EXCEPTION)

    def _perform(
        self, service: Service, command: Command, data: Buffer, transfer_syntax: str
    ) -> tuple[int | None, Mapping[str, Any]]:
        """Have a normalized operation performed on the loop; the status is None when the service gave up on it."""
        if len(data or b"") > MAX_DATASET:
            return RESOURCE_LIMITATION, {}
        operation = Operation(command, bytes(data or b""), transfer_syntax, self.peer)
        answer = self._have_handled(service.perform(operation), Answer(PROCESSING_FAILURE))
        return (None, {}) if answer is None else (answer.status, answer.elements)

    def _have_handled(self, work: Coroutine[Any, Any, T], failed: T) -> T | None:
        """Have work done on the loop, and wait for it; None when the service gave up on it."""
        handling = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._handling = handling
        if self._gave_up:
            # Before it could be seen that there is something to be cancelled.
            handling.cancel()
        try:
            return handling.result()
        except concurrent.futures.CancelledError:
            # By us, or by the handler itself, which has then failed.
            return None if self._gave_up else failed
        finally:
            self._handling = None

    def _give_back(self) -> None:
        if self.dimse.complete:
            size, _ = self.dimse.complete.popleft()
            self.door.ingest.budget.give_back(self, size)
            self._tell(self.door.ingest.answered)

    # -- on the loop --------------------------------------------------------------------------------------------------

    def give_up(self) -> None:
        """Abort, whatever is under way: what has not been acknowledged is the sender's to send again."""
        self._gave_up = True
        handling = self._handling
        if handling is not None:
            handling.cancel()
        self.request_abort()


async def serve(door: Door, sock: socket.socket, peer: ServedPeer, deadline: float) -> None:
    """Serve one connection until it is over.

    :param sock: connected and non-blocking, TLS already established; it is closed here
    :param deadline: monotonic time by which the request for association must be here (ARTIM)
    """
    loop = asyncio.get_running_loop()
    ae = _application_entity(door)
    try:
        association = ServedAssociation(ae, door, peer, loop)
        association.set_socket(
            HardenedSocket(
                association, sock, max_pdu=door.max_pdu, pace=Pace(door.idle_timeout, None, door.min_rate), deadline=deadline
            )
        )
    except BaseException:
        sock.close()
        raise
    association.acse_timeout = max(0.001, deadline - time.monotonic())
    association.network_timeout = door.idle_timeout
    association.acceptor.maximum_length = door.max_pdu
    association.acceptor.ae_title = ae.ae_title
    association.acceptor.implementation_class_uid = ae.implementation_class_uid
    association.acceptor.implementation_version_name = ae.implementation_version_name
    association.requestor.address_info = association.acceptor.address_info = _nominal_address()
    door.serving.add(association)
    try:
        association.start()
        await association.ended.wait()
    except BaseException:
        association.give_up()
        with anyio.move_on_after(2.0, shield=True):
            await association.ended.wait()
        raise
    finally:
        door.serving.discard(association)
        await to_its_end(loop.run_in_executor(workers(), association.close_down))
        # Its threads have ended: what the one that reads has taken since the other gave all back.
        door.ingest.budget.give_back(association)
        door.ingest.answered()


@functools.cache
def _nominal_address() -> AddressInformation:
    # pynetdicom wants one for its events; making it asks the resolver, and who is there is known to the door.
    return AddressInformation("127.0.0.1", 0)


def _application_entity(door: Door) -> ServedAE:
    ae = ServedAE(door.ae_title)
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION
    ae.maximum_associations = 1 << 30
    return ae


def _one_operation_at_a_time(event: Any) -> tuple[int, int]:
    # Offered an asynchronous operations window, we answer 1/1: some senders pipeline without limit until told so.
    return 1, 1


# Stands for the abstract syntaxes of which no transfer syntax is taken: the answer to a context does not name its own.
_WITHOUT_SYNTAX = UID("2.25.0")


def _supported(proposed: Iterable[RawContext], results: Iterable[ContextResult], services: Container[str]) -> list[RawContext]:
    """What makes pynetdicom come to our results: each proposed context is left with the one transfer syntax of its result, and
    what was chosen is all that we support.
    """
    answers = {result.context_id: result for result in results}
    supported: dict[str, RawContext] = {}
    for context in proposed:
        answer = answers[int(context.context_id or 0)]
        chosen = UID(answer.transfer_syntax)
        context._transfer_syntax = [chosen]
        if answer.result == Result.TRANSFER_SYNTAXES_NOT_SUPPORTED:
            context.abstract_syntax = _WITHOUT_SYNTAX
        if answer.result not in (Result.ABSTRACT_SYNTAX_NOT_SUPPORTED, Result.USER_REJECTION):
            ours = supported.setdefault(str(context.abstract_syntax), RawContext())
            ours.abstract_syntax = context.abstract_syntax
            if str(context.abstract_syntax) in services:
                ours.scu_role = ours.scp_role = True
            if answer.result == Result.ACCEPTANCE:
                ours._transfer_syntax.append(chosen)
    return list(supported.values())
