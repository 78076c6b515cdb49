"""One association served by engine ``native``: on the event loop, in the connection's own task, without a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections import deque
from typing import NamedTuple, cast

import anyio

from asyncdicom.archive import Arriving
from asyncdicom.association.handshake import Refusal, telling
from asyncdicom.association.received import Received
from asyncdicom.association.transport import LINGER, part_with
from asyncdicom.association.wakeup import Wakeup
from asyncdicom.errors import ProtocolError
from asyncdicom.scp.access import certificate_names
from asyncdicom.scp.certificates import explain
from asyncdicom.scp.identity import response_to
from asyncdicom.scp.requests import CANNOT_UNDERSTAND, NOT_AUTHORIZED, names_instance, status_without_instance
from asyncdicom.scp.served import Door, ServedPeer
from asyncdicom.scp.services import MAX_DATASET, RESOURCE_LIMITATION, Answer, Operation, Service
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.message import Command, CommandField, Message, MessageReader
from asyncdicom.upper_layer.negotiation import AssociateAccept, AssociateRequest
from asyncdicom.upper_layer.pdu import PDU, PDV, PDUReader, PDUType

# A peer in the middle of a message has at most so long, in seconds, before its rate counts.
_RATE_GRACE = 10.0
# How long the connection may take to go away, in seconds, before it is cut.
_GOODBYE = 2.0
# A dataset of more bytes is written as it arrives, where it can be, and in parts of about so many: each is a hop to a thread.
_STREAMED = 1 << 20
# As much as one read may bring, in bytes: what is read ahead of its turn is no more, and less than 128 KiB costs no mapping
# of memory for each read.
_READ = 120 << 10
# What a fragment costs besides its bytes.
_OVERHEAD = 64


async def serve(door: Door, sock: socket.socket, peer: ServedPeer, deadline: float, tls: ssl.SSLContext | None) -> None:
    """Serve one connection until it is over.

    :param sock: accepted and non-blocking; it is closed here
    :param deadline: monotonic time by which the request for association must be here (ARTIM)
    :param tls: with it, TLS is spoken
    """
    loop = asyncio.get_running_loop()
    association = ServedAssociation(door, peer)
    refusal = Refusal(sock)
    try:
        if tls is None:
            await loop.connect_accepted_socket(lambda: association, sock)
        else:
            left = max(0.001, deadline - time.monotonic())
            with telling(refusal):
                await loop.connect_accepted_socket(
                    lambda: association, sock, ssl=tls, ssl_handshake_timeout=left, ssl_shutdown_timeout=LINGER
                )
    except OSError as error:
        sock.close()
        door.refused("tls", peer, explain(refusal.error or error))
        return
    except BaseException:
        sock.close()
        raise
    door.serving.add(association)
    try:
        await association.run(deadline)
    finally:
        door.serving.discard(association)
        with anyio.CancelScope(shield=True):
            await association.gone()


class _Waiting(NamedTuple):
    """What waits for its turn: a message, or a part of one.

    :ivar parts: of the dataset of a message that is still arriving; None for a whole message
    :ivar arrived: monotonic time of its last fragment
    :ivar size: what it was charged for
    """

    message: Message
    parts: list[bytearray | memoryview] | None
    arrived: float
    size: int


class ServedAssociation(asyncio.Protocol):
    """An association that was asked of us: the acceptor's states of PS3.8 section 9.2."""

    def __init__(self, door: Door, peer: ServedPeer) -> None:
        self._door = door
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._frames = PDUReader(door.max_pdu)
        self._messages = MessageReader(door.max_object_size, joins=False)
        # What waits for its turn: whole messages, and parts of datasets too large to be held.
        self._inbox: deque[_Waiting] = deque()
        # Bytes that are charged to the budget and not yet handed on, and those that came since it was last told.
        self._charged = 0
        self._uncharged = 0
        # The instance whose dataset is being written as it comes.
        self._arriving: Arriving | None = None
        self._request: AssociateRequest | None = None
        self._contexts: dict[int, tuple[str, str]] = {}
        self._max_length = 0
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._wakeup = Wakeup()
        self._writable: asyncio.Future[None] | None = None
        self._closed = self._loop.create_future()
        self._scope: anyio.CancelScope | None = None
        # Of a dataset that was too long to be held, and that nobody takes in parts.
        self._has_forgotten = False
        self._is_handling = False
        self._is_paused = False
        self._is_established = False
        self._said = False
        self._last = time.monotonic()
        # By when more of the message has to be here.
        self._grace = min(_RATE_GRACE, door.idle_timeout)
        self._due = self._last + self._grace
        self._release_asked = False
        # Why it is over, in the words of Observer.scp_association_aborted; "" after a release; None while it is not.
        self._ending: str | None = None

    # -- the transport's side -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if hasattr(transport, "max_size"):
            transport.max_size = _READ
        self._socket = transport.get_extra_info("socket")
        self._peer.names = certificate_names(transport.get_extra_info("peercert"))
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._last = time.monotonic()
        self._said = True
        if self._ending is not None:
            return
        if not self._inside():
            self._due = self._last + self._grace
        elif self._door.min_rate:
            # What came fast at first does not buy hours of slowness.
            longest = self._grace + self._door.max_pdu / self._door.min_rate
            self._due = min(self._due + len(data) / self._door.min_rate, self._last + longest)
        try:
            self._frames.feed(data)
            self._read_on()
        except ProtocolError:
            self._refuse("too_large" if self._messages.size > self._door.max_object_size else "protocol_error")
        if self._inside():
            self._acknowledge_at_once()
        self._wakeup.notify()

    def _acknowledge_at_once(self) -> None:
        # A sender with Nagle on waits for our delayed acknowledgement, 40 ms an object, before it sends the rest; what ends a
        # message is acknowledged by our answer. The kernel forgets the option.
        if self._socket is not None and hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _read_on(self) -> None:
        """Act on what is here, until it brings something to do; the rest of what was read waits for that to be done."""
        while self._ending is None and not self._inbox and not self._is_handling:
            found = self._frames.next_item()
            if found is None:
                break
            if isinstance(found, PDV):
                self._receive_fragment(found)
            else:
                self._receive(found)
        if self._uncharged:
            self._door.ingest.budget.charge(self, self._uncharged)
            self._uncharged = 0
        self._pause_or_resume()

    def _receive_fragment(self, fragment: PDV) -> None:
        if not self._is_established or self._release_asked:
            raise ProtocolError("P-DATA-TF out of turn")
        messages = self._messages
        size = len(fragment.data)
        # Small fragments cost more than their bytes.
        self._charged += size + _OVERHEAD
        self._uncharged += size + _OVERHEAD
        message = messages.receive(fragment)
        if message is not None:
            self._hand_on(_Waiting(message, None, self._last, self._charged))
        elif messages.held >= _STREAMED and messages.command is not None and self._is_streamed(messages.command):
            under_way = Message(messages.context_id, messages.command, None)
            self._hand_on(_Waiting(under_way, messages.take(), self._last, self._charged))

    def _is_streamed(self, command: Command) -> bool:
        """Whether a dataset that is long already is taken in parts; those of other requests are, in the end, forgotten."""
        if command.get("CommandField") == CommandField.C_STORE_RQ:
            return self._door.ingest.streams
        return self._messages.held >= MAX_DATASET

    def _hand_on(self, waiting: _Waiting) -> None:
        self._charged = 0
        self._inbox.append(waiting)

    def _receive(self, found: PDU) -> None:
        kind = found.type
        if kind == PDUType.ASSOCIATE_RQ and self._request is None:
            self._request = negotiation.decode_request(found.body)
        elif kind == PDUType.RELEASE_RQ and self._is_established:
            self._release_asked = True
        elif kind == PDUType.ABORT:
            self._over("peer")
        else:
            raise ProtocolError(f"{found.name} out of turn")

    def _pause_or_resume(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        # Who has something to do reads on once, and what came then waits: seldom is there anything, so seldom is this noticed.
        has_room = not (self._frames.pending and (self._inbox or self._is_handling))
        wanted = has_room and self._door.ingest.budget.may_read(self)
        if wanted and self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        elif not wanted and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
            if has_room:
                self._door.ingest.budget.notify(self, self._room)

    def _room(self) -> None:
        """The budget has room again. Called from any thread."""
        self._loop.call_soon_threadsafe(self._pause_or_resume)

    def eof_received(self) -> bool | None:
        self._over("connection_lost")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._over("connection_lost")
        if not self._closed.done():
            self._closed.set_result(None)
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # -- ending -------------------------------------------------------------------------------------------------------

    def _over(self, ending: str) -> None:
        if self._ending is None:
            self._ending = ending
            if self._transport is not None:
                self._transport.close()
        self._wakeup.notify()

    def _refuse(self, ending: str) -> None:
        """Abort (PS3.8 AA-1, AA-8), and listen no more."""
        if self._ending is not None:
            return
        self._ending = ending
        self._is_paused = False
        if self._transport is not None:
            # Before the association stands it is AA-1, which has the user abort.
            is_user = ending == "drain" or not self._is_established
            source = pdu.AbortSource.SERVICE_USER if is_user else pdu.AbortSource.SERVICE_PROVIDER
            part_with(self._transport, pdu.encode_abort(source))
        self._wakeup.notify()

    def _reject(self, answer: tuple[int, int, int]) -> None:
        if self._ending is not None:
            # It went on talking, and was aborted before its request was looked at.
            return
        self._ending = ""
        if self._transport is not None:
            self._transport.write(pdu.encode_reject(*answer))
            self._transport.close()

    @property
    def is_busy(self) -> bool:
        """Whether a message is arriving, waiting or being handled."""
        return self._is_handling or bool(self._inbox) or self._messages.inside_message

    def give_up(self) -> None:
        """Abort, whatever is under way: what has not been acknowledged is the sender's to send again."""
        self._refuse("drain")
        if self._is_handling and self._scope is not None:
            self._scope.cancel()

    async def gone(self) -> None:
        """Return once the descriptor is given back; by force when the peer does not read what is left."""
        if self._transport is None:
            return
        self._transport.close()
        with anyio.move_on_after(_GOODBYE):
            await asyncio.shield(self._closed)
        if not self._closed.done():
            self._transport.abort()
            await asyncio.shield(self._closed)

    # -- the association's task ---------------------------------------------------------------------------------------

    async def run(self, deadline: float) -> None:
        """Serve the association from its request to its end."""
        try:
            if await self._associate(deadline):
                self._door.established(self._peer)
                try:
                    await self._serve()
                except BaseException:
                    self._refuse("drain")
                    raise
                finally:
                    self._door.closed(self._peer, self._ending or None)
                    self._door.leave()
        finally:
            self._wakeup.silence()
            self._door.ingest.budget.forget(self)
            self._door.ingest.answered()

    async def _wait(self, until: float) -> None:
        """Wait until something changed, or the time has come; now and then it returns for nothing."""
        await self._wakeup.wait(until - time.monotonic())

    async def _associate(self, deadline: float) -> bool:
        """Take the request for association and answer it; False when there is no association."""
        while self._request is None and self._ending is None:
            if time.monotonic() >= deadline:
                # PS3.8 AA-2: the ARTIM timer expired.
                self._door.refused("artim", self._peer)
                self._over("")
                return False
            await self._wait(deadline)
        request = self._request
        if request is None:
            return False
        if not request.protocol_version & negotiation.PROTOCOL_VERSION:
            self._door.refused("protocol_version", self._peer)
            self._reject(negotiation.PROTOCOL_VERSION_NOT_SUPPORTED)
            return False
        peer = self._peer
        peer.calling_ae_title, peer.called_ae_title = request.calling_ae_title.strip(), request.called_ae_title.strip()
        try:
            pdu.fragment_length(request.max_length)
        except ProtocolError:
            self._refuse("protocol_error")
            return False
        refusal = self._door.decide(peer)
        if refusal is not None:
            reason, answer = refusal
            self._door.refused(reason, peer)
            self._reject(answer)
            return False
        is_accepted = False
        try:
            disbelief = None if self._door.identities is None else await self._door.identify(request.user_identity, peer)
            if self._ending is None and disbelief is not None:
                self._door.refused(disbelief.reason, peer, disbelief.detail)
                self._reject(disbelief.answer)
            elif self._ending is None:
                self._accept(request)
                is_accepted = True
        finally:
            if not is_accepted:
                self._door.leave()
        return is_accepted

    def _accept(self, request: AssociateRequest) -> None:
        door = self._door
        results = door.results_of(request.contexts, self._peer)
        syntaxes = {context.context_id: context.abstract_syntax for context in request.contexts}
        self._contexts = {
            result.context_id: (syntaxes[result.context_id], result.transfer_syntax)
            for result in results
            if result.result == negotiation.Result.ACCEPTANCE
        }
        agreed = {sop_class for sop_class, _ in self._contexts.values()}
        self._max_length = request.max_length
        accept = AssociateAccept(
            called_ae_title=request.called_ae_title,
            calling_ae_title=request.calling_ae_title,
            contexts=results,
            max_length=door.max_pdu,
            # Offered a window of operations, we answer 1/1: some senders pipeline without limit until told so.
            asynchronous_operations=None if request.asynchronous_operations is None else (1, 1),
            roles=tuple(role for role in request.roles if role.sop_class in door.sop_classes and role.sop_class in agreed),
            user_identity_response=response_to(request.user_identity, door.identities),
        )
        self._write(negotiation.encode_accept(accept))
        self._is_established = True

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _serve(self) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                while await self._take_turns():
                    await self._wait(self._look_again())
                    self._check_pace()
        finally:
            if self._arriving is not None:
                with anyio.CancelScope(shield=True):
                    await self._arriving.discard()

    async def _take_turns(self) -> bool:
        """Handle what waits; False when the association is over."""
        budget = self._door.ingest.budget
        while self._inbox and self._ending is None:
            waiting = self._inbox.popleft()
            self._is_handling = True
            try:
                if waiting.parts is None:
                    await self._answer(waiting.message, waiting.arrived)
                else:
                    await self._write_part(waiting.message, waiting.parts)
            finally:
                self._is_handling = False
                budget.give_back(self, waiting.size)
                self._door.ingest.answered()
            # The time that we took is not the peer's.
            self._last = time.monotonic()
            self._due = self._last + self._grace
            try:
                self._read_on()
            except ProtocolError:
                self._refuse("protocol_error")
        if self._ending is None and self._release_asked:
            self._write(pdu.encode_release_rp())
            self._over("")
        return self._ending is None

    def _look_again(self) -> float:
        """When the peer's pace has to be looked at."""
        idle = self._last + self._door.idle_timeout
        return min(self._rate_due(), idle)

    def _rate_due(self) -> float:
        """By when more of the message under way has to be here; never, between messages."""
        if not self._inside() or not self._door.min_rate:
            return float("inf")
        return self._due

    def _inside(self) -> bool:
        return self._messages.inside_message or self._frames.inside_pdu

    def _check_pace(self) -> None:
        now = time.monotonic()
        if self._ending is not None or self._is_paused or self._inbox:
            return
        if now >= self._last + self._door.idle_timeout:
            self._refuse("stalled" if self._inside() else "idle")
        elif now >= self._rate_due():
            self._refuse("stalled")

    async def _answer(self, message: Message, arrived: float) -> None:
        """Do what a message asks, and send the response."""
        command = message.command
        context = self._contexts.get(message.context_id)
        # Of this message, and of none that follows.
        forgotten, self._has_forgotten = self._has_forgotten, False
        try:
            if context is None:
                raise ProtocolError("a message on a presentation context that was not accepted")
            field = command.field
            if field == CommandField.C_STORE_RQ:
                if "MessageID" not in command:
                    raise ProtocolError("what cannot be answered is not kept")
                answer: Answer | None = Answer(await self._store(message, context[1], arrived))
            elif (service := self._door.services.get((context[0], field))) is not None:
                answer = await self._perform(service, message, context[1], forgotten=forgotten)
            else:
                status = status_without_instance(command, context[0])
                answer = None if status is None else Answer(status)
            if answer is not None and self._ending is None:
                encoded = dimse.encode_command(dimse.response(command, answer.status, **answer.elements))
                self._write(pdu.encode_message(message.context_id, encoded, max_length=self._max_length))
                await self._drained()
        except ProtocolError:
            self._refuse("protocol_error")

    async def _perform(self, service: Service, message: Message, transfer_syntax: str, *, forgotten: bool) -> Answer:
        if forgotten:
            return Answer(RESOURCE_LIMITATION)
        data = b"".join(message.parts or (message.data or b"",))
        return await service.perform(Operation(message.command, data, transfer_syntax, self._peer))

    async def _drained(self) -> None:
        if self._writable is not None:
            with anyio.move_on_after(self._door.idle_timeout):
                await asyncio.shield(self._writable)
                return
            self._refuse("stalled")

    def _received(self, message: Message, transfer_syntax: str) -> Received:
        command, peer = message.command, self._peer
        return Received(
            data=message.parts or message.data or b"",
            sop_class_uid=command.sop_class_uid,
            sop_instance_uid=command.sop_instance_uid,
            transfer_syntax_uid=transfer_syntax,
            calling_ae_title=peer.calling_ae_title,
            called_ae_title=peer.called_ae_title,
            peer_address=peer.address,
            move_originator_ae_title=command.get("MoveOriginatorApplicationEntityTitle") or None,
            move_originator_message_id=command.get("MoveOriginatorMessageID"),
        )

    async def _write_part(self, message: Message, parts: list[bytearray | memoryview]) -> None:
        """Write a part of a dataset that is too large to be held; what goes wrong is answered when all of it is here."""
        if self._arriving is None:
            context = self._contexts.get(message.context_id)
            command = message.command
            is_store = command.field == CommandField.C_STORE_RQ and "MessageID" in command and self._may_store
            if context is None or not is_store or not names_instance(command):
                # It will be answered as what it is; until then it is read and forgotten.
                self._has_forgotten = True
                return
            self._arriving = self._door.ingest.begin(self._received(message, context[1]))
        await self._arriving.append(parts)

    @property
    def _may_store(self) -> bool:
        # Whoever may not gets no context for it, but can send a C-STORE on any other one.
        return "store" in self._peer.operations

    async def _store(self, message: Message, transfer_syntax: str, arrived: float) -> int:
        ingest = self._door.ingest
        if not self._may_store:
            self._door.store_refused(self._peer, NOT_AUTHORIZED)
            return NOT_AUTHORIZED
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            try:
                await arriving.append(message.parts or (message.data or b"",))
                return await ingest.take(arriving.received, arrived, arriving)
            finally:
                await arriving.discard()
        if not (message.parts or message.data) or not names_instance(message.command):
            return CANNOT_UNDERSTAND
        return await ingest.take(self._received(message, transfer_syntax), arrived)
