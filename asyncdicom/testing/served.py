"""One connection to a simulated modality: the acceptor's side of an association, with its fault (PS3.8 section 9.2)."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, NamedTuple, cast

from asyncdicom.errors import OperationError, ProtocolError
from asyncdicom.testing.behaviour import Behaviour, Fault
from asyncdicom.testing.operations import perform
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.context import AcceptedContext
from asyncdicom.upper_layer.message import Command, CommandField, Message, MessageReader
from asyncdicom.upper_layer.negotiation import AssociateAccept, AssociateRequest
from asyncdicom.upper_layer.pdu import PDU, PDUReader, PDUType

if TYPE_CHECKING:
    from asyncdicom.testing.simulated import SimulatedModality

# What answers on a mistaken port is most often a web server.
GARBAGE = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
# A user-information sub-item of a type that PS3.7 Annex D.3 does not define.
UNKNOWN_USER_ITEM = (0x5F, b"from the future")
# PS3.8 section 9.1.5: how long, in seconds, a peer may take to close a connection whose association is over.
_ARTIM = 10.0

# How many requests for association are remembered with their answer, and up to how many bytes each.
_REMEMBERED = 256
_REMEMBERED_LENGTH = 8_192


class Negotiated(NamedTuple):
    """A request for association, and the answer that accepts it.

    :ivar contexts: what was agreed, by context ID; roles as the requestor sees them
    :ivar encoded: the A-ASSOCIATE-AC
    """

    request: AssociateRequest
    contexts: dict[int, AcceptedContext]
    encoded: bytes


class Served(asyncio.Protocol):
    """One connection, from accept to close."""

    def __init__(self, modality: SimulatedModality) -> None:
        self.modality = modality
        self.behaviour = modality.behaviour
        self.request: AssociateRequest | None = None
        self.contexts: dict[int, AcceptedContext] = {}
        self.max_length = 0
        self.associated = False
        #: Message IDs of operations under way that the peer cancelled.
        self.cancelled: set[int] = set()
        #: Sub-operations of ours that wait for the peer's response, by Message ID.
        self.responses: dict[int, asyncio.Future[Command]] = {}
        self._frames = PDUReader(modality.max_length)
        self._messages = MessageReader(modality.max_object_size)
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._ended = False
        self._deaf = self.behaviour.fault is Fault.SILENT_TLS
        self._last_message_id = 0

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.modality.connected(self)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            self._frames.feed(data)
            for found in self._frames:
                self._receive(found)
        except ProtocolError as error:
            self.modality.protocol_errors.append(str(error))
            if self.behaviour.fault is Fault.SILENT:
                self._deaf = True
                return
            self.write(pdu.encode_abort(pdu.AbortSource.SERVICE_PROVIDER, pdu.AbortReason.UNRECOGNIZED_PDU))
            self.close()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def connection_lost(self, error: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self.associated:
            self.modality.lost += 1
            self._end()
        self.modality.disconnected(self)

    # What operations use.

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes; to a connection that is closing they are lost, as they would be on the wire."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Return once the peer has read enough for more to be written."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def send(self, context_id: int, command: Command, dataset: bytes | memoryview | None = None) -> None:
        """Send a small message."""
        self.write(pdu.encode_message(context_id, dimse.encode_command(command), dataset, max_length=self.max_length))

    async def send_large(self, context_id: int, command: Command, dataset: memoryview) -> None:
        """Send a message whose dataset is more than the connection takes at once."""
        self.send(context_id, command)
        for part in pdu.encode_data(context_id, dataset, command=False, max_length=self.max_length):
            self.write(part)
            await self.drained()

    def abort(self) -> None:
        """Send A-ABORT and close."""
        self.write(pdu.encode_abort())
        self.close()

    def close(self) -> None:
        """Close the connection when everything is sent."""
        self._end()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            # A peer that does not read would keep it open.
            self._start_artim()

    def reset(self) -> None:
        """Close the connection with RST, at once."""
        self._end()
        if self._transport is not None:
            connection: socket.socket = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def drop(self) -> None:
        """Drop the connection at once, with what was not sent."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def calling_ae_title(self) -> str:
        """How the peer introduced itself."""
        return "" if self.request is None else self.request.calling_ae_title

    def next_message_id(self) -> int:
        """Return the Message ID for a request of ours."""
        self._last_message_id = self._last_message_id % 0xFFFF + 1
        return self._last_message_id

    # PDUs.

    def _receive(self, found: PDU) -> None:
        if found.type == PDUType.ABORT:
            self.modality.aborts_received += 1
            self.close()
        elif self._ended:
            # What a peer still sends after the end is not looked at (PS3.8 Table 9-10, Sta13).
            return
        elif found.type == PDUType.ASSOCIATE_RQ and self.request is None:
            self.modality.requests_received += 1
            self._request_received(bytes(found.body))
        elif found.type == PDUType.DATA_TF and self.associated:
            for value in pdu.decode_data(found.body):
                whole = self._messages.receive(value)
                if whole is not None:
                    self._message_received(whole)
        elif found.type == PDUType.RELEASE_RQ and self.associated:
            self.modality.releases_received += 1
            if self.behaviour.fault is not Fault.NO_RELEASE:
                self.write(pdu.encode_release_rp())
                self._end()
                self._start_artim()
        elif self.behaviour.fault is not Fault.SILENT:
            raise ProtocolError(f"{found.name} out of turn")

    def _request_received(self, body: bytes) -> None:
        modality = self.modality
        self.behaviour = modality.behaviour_of_request(modality.requests_received)
        negotiated = self._negotiate(body)
        self.request = negotiated.request
        modality.requests.append(negotiated.request)
        if self.behaviour.associate_delay > 0:
            self._after(self.behaviour.associate_delay, self._answer_request, negotiated)
        else:
            self._answer_request(negotiated)

    def _answer_request(self, negotiated: Negotiated) -> None:
        behaviour, modality, request = self.behaviour, self.modality, negotiated.request
        answer = _ON_REQUEST.get(behaviour.fault)
        if answer is not None:
            answer(self)
        elif modality.require_called_ae_title and request.called_ae_title != modality.ae_title:
            self.reject(1, 1, 7)
        elif modality.max_associations is not None and modality.current >= modality.max_associations:
            self.reject(2, 3, 2)
        elif behaviour.fault is Fault.STALLING:
            self.write(negotiated.encoded[: len(negotiated.encoded) // 2])
        else:
            self.contexts = negotiated.contexts
            self.max_length = request.max_length
            self.associated = True
            modality.association_opened()
            self.write(negotiated.encoded)

    def _negotiate(self, body: bytes) -> Negotiated:
        """Read a request and make the answer that accepts it; remembered, because those of a sweep are all the same."""
        modality, fault = self.modality, self.behaviour.fault
        known = modality.negotiated.get((fault, body))
        if known is None:
            known = self._negotiate_anew(body)
            if len(body) <= _REMEMBERED_LENGTH and len(modality.negotiated) < _REMEMBERED:
                modality.negotiated[fault, body] = known
        return known

    def _negotiate_anew(self, body: bytes) -> Negotiated:
        modality, fault = self.modality, self.behaviour.fault
        request = negotiation.decode_request(body)
        contexts = negotiation.negotiate(
            request.contexts, (lambda _: None) if fault is Fault.NO_CONTEXT else modality.transfer_syntaxes_of
        )
        identity = request.user_identity
        accept = AssociateAccept(
            request.called_ae_title,
            request.calling_ae_title,
            contexts,
            max_length=modality.max_length,
            # One at a time, whatever was offered: some senders pipeline without limit unless told.
            asynchronous_operations=None if request.asynchronous_operations is None else (1, 1),
            roles=request.roles,
            extended=request.extended,
            user_identity_response=b"" if identity is not None and identity.response else None,
            other_items=(UNKNOWN_USER_ITEM,) if fault is Fault.UNKNOWN_USER_ITEM else (),
        )
        agreed = {found.context_id: found for found in negotiation.accepted_contexts(request, accept)}
        return Negotiated(request, agreed, negotiation.encode_accept(accept))

    def reject(self, result: int, source: int, diagnostic: int) -> None:
        """Reject the association; the requestor closes the connection."""
        self.modality.rejections += 1
        self.write(pdu.encode_reject(result, source, diagnostic))
        self._end()
        self._start_artim()

    # Messages.

    def _message_received(self, message: Message) -> None:
        command = message.command
        if message.context_id not in self.contexts:
            raise ProtocolError(f"message on context {message.context_id}, which was not accepted")
        if command.is_response:
            waiting = self.responses.pop(command.responded_to, None)
            if waiting is None:
                raise ProtocolError(f"{command.name} to a request that was not made")
            if not waiting.done():
                waiting.set_result(command)
            return
        if command.field == CommandField.C_CANCEL_RQ:
            self.modality.cancels_received += 1
            if self.behaviour.honour_cancel:
                self.cancelled.add(command.responded_to)
            return
        self.modality.count(command.field)
        if self.behaviour.delay > 0:
            self.start(self._late(message))
        else:
            self._answer(message)

    async def _late(self, message: Message) -> None:
        await asyncio.sleep(self.behaviour.delay)
        self._answer(message)

    def _answer(self, message: Message) -> None:
        fault = self.behaviour.fault
        answer = _ON_OPERATION.get(fault)
        if answer is not None:
            answer(self, message)
        else:
            perform(self, message, endless=fault is Fault.ENDLESS_PENDING)

    def start(self, operation: Coroutine[object, object, None]) -> None:
        """Run an operation that takes time, until it is done or the connection is gone."""
        task = asyncio.get_running_loop().create_task(operation)
        self._tasks.add(task)
        self.modality.tasks.add(task)
        task.add_done_callback(self._operation_done)

    def _operation_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.modality.tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, OperationError):
            self.modality.protocol_errors.append(str(error))
        elif error is not None:
            self.modality.errors.append(error)
        if error is not None:
            self.abort()

    def _end(self) -> None:
        self._ended = True
        if self.associated:
            self.associated = False
            self.modality.association_closed()

    def _after(self, delay: float, call: Callable[..., object], *arguments: object) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, call, *arguments)

    def _start_artim(self) -> None:
        if self._transport is not None:
            self._after(_ARTIM, self._transport.abort)


def _say_garbage(served: Served) -> None:
    served.write(GARBAGE)
    served._ended = True


def _lie(pdu_type: PDUType, served: Served) -> None:
    served.write(struct.pack(">BxI", pdu_type, 0xFFFFFFF0) + bytes(64))


def _stay_silent(served: Served) -> None:
    """Say nothing: the peer has a deadline, or it has not."""


def _reject(served: Served) -> None:
    behaviour: Behaviour = served.behaviour
    served.reject(behaviour.result, behaviour.source, behaviour.diagnostic)


_ON_REQUEST: dict[Fault, Callable[[Served], None]] = {
    Fault.SILENT: _stay_silent,
    Fault.REJECTING: _reject,
    Fault.REJECTING_TRANSIENT: _reject,
    Fault.RESETTING: Served.reset,
    Fault.CLOSING: Served.close,
    Fault.ABORTING: Served.abort,
    Fault.GARBAGE: _say_garbage,
    Fault.LYING_LENGTH: lambda served: _lie(PDUType.ASSOCIATE_AC, served),
}


def _half(served: Served, message: Message) -> None:
    answer = dimse.encode_command(dimse.response(message.command, 0x0000))
    encoded = pdu.encode_message(message.context_id, answer, max_length=served.max_length)
    served.write(encoded[: len(encoded) // 2])


def _fail(served: Served, message: Message) -> None:
    served.send(message.context_id, dimse.response(message.command, served.behaviour.status))


def _answer_another(served: Served, message: Message) -> None:
    answer = dimse.response(message.command, 0x0000)
    answer["MessageIDBeingRespondedTo"] = (message.command.message_id + 1) & 0xFFFF
    served.send(message.context_id, answer)


def _answer_otherwise(served: Served, message: Message) -> None:
    answer = dimse.response(message.command, 0x0000)
    other = CommandField.C_ECHO_RSP if message.command.field != CommandField.C_ECHO_RQ else CommandField.C_FIND_RSP
    answer["CommandField"] = int(other)
    served.send(message.context_id, answer)


_ON_OPERATION: dict[Fault, Callable[[Served, Message], None]] = {
    Fault.SILENT_AFTER_ASSOCIATE: lambda served, _: _stay_silent(served),
    Fault.STALLING_OPERATION: _half,
    Fault.RESETTING_OPERATION: lambda served, _: served.reset(),
    Fault.CLOSING_OPERATION: lambda served, _: served.close(),
    Fault.ABORTING_OPERATION: lambda served, _: served.abort(),
    Fault.GARBAGE_OPERATION: lambda served, _: served.write(GARBAGE),
    Fault.LYING_LENGTH_OPERATION: lambda served, _: _lie(PDUType.DATA_TF, served),
    Fault.FAILURE_STATUS: _fail,
    Fault.WRONG_MESSAGE: _answer_another,
    Fault.WRONG_MESSAGE_TYPE: _answer_otherwise,
}
