"""Engine ``pynetdicom``: its threaded association, awaited.

The connection is made on the loop (:mod:`asyncdicom.association.transport`); pynetdicom gets a connected socket. Its blocking
calls then run on threads of our own. A caller that is cancelled aborts the association, which brings the thread back.
"""

from __future__ import annotations

import asyncio
import functools
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import anyio
from pydicom.uid import UID
from pynetdicom.ae import ApplicationEntity
from pynetdicom.pdu_items import SCP_SCU_RoleSelectionSubItem, UserIdentitySubItemRQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import build_context
from pynetdicom.transport import AddressInformation

from asyncdicom.association import transport
from asyncdicom.association.contract import Stopwatch
from asyncdicom.association.dialogue import Dataset_, Dialogue
from asyncdicom.association.hardened import HardenedAssociation
from asyncdicom.association.hardened_socket import Fault, HardenedSocket, Pace
from asyncdicom.association.instance import Instance
from asyncdicom.association.primitives import to_primitive
from asyncdicom.association.proposal import extended_of, request_to
from asyncdicom.association.query import Query
from asyncdicom.association.workers import workers
from asyncdicom.background import to_its_end
from asyncdicom.errors import (
    AssociateTimeout,
    AssociationAborted,
    AssociationRejected,
    ConnectionLost,
    DatasetError,
    NoPresentationContext,
    OperationError,
    OperationTimeout,
    ProtocolError,
    TLSFailed,
)
from asyncdicom.modality import Modality
from asyncdicom.outcome import Peer, Phases
from asyncdicom.upper_layer import negotiation
from asyncdicom.upper_layer.context import AcceptedContext, PresentationContext
from asyncdicom.upper_layer.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from asyncdicom.upper_layer.message import Command, Message
from asyncdicom.upper_layer.negotiation import AssociateRequest

T = TypeVar("T")

# How long a cancelled caller waits for its thread to come back, in seconds; it has been woken, so this is never used up.
_COMEBACK = 2.0
_CUT = 0.4
# Messages taken from pynetdicom in one hop to a thread.
_BATCH = 64


async def request(
    modality: Modality,
    calling_ae_title: str,
    contexts: Sequence[PresentationContext],
    phases: Phases,
    query: Query | None = None,
) -> BridgedAssociation:
    """Request an association.

    :raises OperationError: when it cannot be had
    """
    asked = request_to(modality, calling_ae_title, contexts, extended_of(query))
    sock = await transport.connect(modality, phases)
    try:
        peer_address = sock.getpeername()
    except OSError as error:
        sock.close()
        raise ConnectionLost(f"{modality}: {os.strerror(error.errno or 0)}") from error
    association = BridgedAssociation(modality, phases)
    with Stopwatch(phases, "associate"):
        await association._request(sock, peer_address, asked)
    return association


class BridgedAssociation(Dialogue):
    """A pynetdicom association, awaited."""

    raw: HardenedAssociation

    def __init__(self, modality: Modality, phases: Phases) -> None:
        super().__init__(modality, phases)
        self._messages: deque[Message] = deque()
        self._closed = False

    # -- establishing -------------------------------------------------------------------------------------------------

    async def _request(self, sock: Any, peer_address: Any, asked: AssociateRequest) -> None:
        limits, timeouts = self.modality.limits, self.modality.timeouts
        try:
            ae = ApplicationEntity(asked.calling_ae_title)
            ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
            ae.implementation_version_name = IMPLEMENTATION_VERSION
            ae.acse_timeout = timeouts.associate
            ae.network_timeout = None
            raw = HardenedAssociation(ae, "requestor", max_object_size=limits.max_object_size)
            raw.set_socket(
                HardenedSocket(
                    raw,
                    sock,
                    max_pdu=limits.max_pdu,
                    pace=Pace(timeouts.operation, timeouts.operation),
                    deadline=time.monotonic() + timeouts.associate,
                )
            )
        except BaseException:
            sock.close()
            raise
        self.raw = raw
        try:
            await self.run_blocking(self._negotiate, peer_address, asked)
            answer = raw.dul.answer
            if answer is not None:
                # What was answered that was not asked is no matter of pynetdicom's.
                self.accepted = negotiation.accepted_contexts(asked, answer)
                self.peer = Peer(answer.implementation_class_uid or None, answer.implementation_version or None)
            if not raw.is_established:
                raise self._why(AssociateTimeout(f"{self.modality}: no answer in {timeouts.associate:g} s"))
            _ = raw.dimse.maximum_pdu_size  # It raises where there is none.
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.abort()
            raise
        raw.transport.deadline = None
        raw.acse_timeout = timeouts.release

    def _negotiate(self, peer_address: Any, asked: AssociateRequest) -> None:
        # On a worker. These are the steps of ApplicationEntity.associate, with the parts of ours.
        raw, modality = self.raw, self.modality
        raw.acceptor.ae_title = modality.ae_title
        raw.acceptor.address_info = AddressInformation.from_tuple(peer_address)
        raw.requestor.address_info = AddressInformation.from_tuple(raw.transport._connected_socket.getsockname())
        raw.requestor.ae_title = raw.ae.ae_title
        raw.requestor.maximum_length = modality.limits.max_pdu
        raw.requestor.implementation_class_uid = raw.ae.implementation_class_uid
        raw.requestor.implementation_version_name = raw.ae.implementation_version_name
        proposed = []
        for context in asked.contexts:
            item = build_context(context.abstract_syntax)
            item.context_id = context.context_id
            # As it is given: pynetdicom says each but once.
            item._transfer_syntax = [UID(syntax) for syntax in context.transfer_syntaxes]
            proposed.append(item)
        raw.requestor.requested_contexts = proposed
        for item in _negotiation_items(modality, asked):
            raw.requestor.add_negotiation_item(item)
        # The reactor's thread is not started: whoever asks waits for the answer itself, and nobody polls in between.
        raw._is_paused = True
        raw.request()

    def _why(self, timeout: OperationError) -> OperationError:
        """What ended the association, or kept it from beginning.

        :param timeout: the error for a peer that just did not answer in time
        """
        raw, who = self.raw, self.modality
        # A peer that rejects at once has closed before pynetdicom looks whether the connection stands; then nobody took this.
        waiting = raw.dul.peek_next_pdu()
        answer = raw.acceptor.primitive or (waiting if isinstance(waiting, A_ASSOCIATE) else None)
        if answer is not None and answer.result:
            return AssociationRejected(*raw.dul.rejection)
        if answer is not None and answer.result == 0 and not self.accepted:
            return NoPresentationContext(f"{who}: accepted none of the presentation contexts")
        match raw.fault:
            case Fault.CLOSED:
                return ConnectionLost(f"{who}: the peer closed the connection")
            case Fault.RESET:
                return ConnectionLost(f"{who}: the connection was reset")
            case Fault.TLS if answer is None:
                return TLSFailed(f"{who}: the peer does not go on: it ended TLS with an alert")
            case Fault.TLS:
                return ConnectionLost(f"{who}: the peer ended TLS with an alert")
            case Fault.PROTOCOL:
                return ProtocolError(f"{who}: the peer sent what is not DICOM, or what is out of turn")
            case Fault.TOO_LARGE:
                return ProtocolError(f"{who}: the peer sent a message over the limit of {who.limits.max_object_size} bytes")
            case Fault.STALLED:
                return timeout
        text = f"{who}: the peer aborted the association"
        abort = raw.dul.peer_abort
        if abort is not None:
            return AssociationAborted(text, source=abort.source, diagnostic=abort.diagnostic)
        indicated = raw.dul.received_abort
        if indicated is not None:
            return AssociationAborted(text, source=2, diagnostic=getattr(indicated, "provider_reason", None))
        return timeout

    # -- threads ------------------------------------------------------------------------------------------------------

    async def run_blocking(self, function: Callable[..., T], *args: Any) -> T:
        """Run a blocking call on a worker. Cancelling aborts the association, which brings the worker back."""
        future = asyncio.get_running_loop().run_in_executor(workers(), function, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done():
                self.raw.request_abort()
                # A peer that keeps talking over our A-ABORT keeps the upper layer busy: it gets a moment, then it is cut off.
                cut = asyncio.get_running_loop().call_later(_CUT, self.raw.transport.sever)
                with anyio.move_on_after(_COMEBACK, shield=True):
                    await asyncio.wait([future])
                cut.cancel()
            if future.done() and not future.cancelled():
                future.exception()  # Seen: whatever it was, the caller wanted nothing of it any more.
            raise

    # -- carrying messages --------------------------------------------------------------------------------------------

    @property
    def is_established(self) -> bool:
        """Whether operations can be asked for."""
        return not self._closed and self.raw.is_established

    def ending(self) -> OperationError:
        """Why the association is over."""
        return ConnectionLost(f"{self.modality}: the association is over")

    async def begin(self) -> None:
        """Get ready for an operation: stop what is outstanding, notice what happened in between."""
        await super().begin()
        if self.raw.acse.is_release_requested():
            await self._released_by_peer()

    async def _released_by_peer(self) -> None:
        await self.run_blocking(self.raw.answer_release)
        await self.abort()
        raise ConnectionLost(f"{self.modality}: the peer released the association")

    async def send(self, context: AcceptedContext, command: Command, dataset: Dataset_ = None) -> None:
        """Send a message."""
        primitive = to_primitive(command, dataset)
        data = dataset.data if isinstance(dataset, Instance) else dataset
        try:
            await self.run_blocking(self.raw.dimse.send_message, context.context_id, primitive, data is not None and not data)
        except OSError as error:
            # The file went away between reading its header and sending it; half a message may be on its way.
            await self.abort()
            path = dataset.path if isinstance(dataset, Instance) else None
            raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error

    def _take(self, seconds: float) -> list[Message]:
        # On a worker: wait for one message, and take what else is there.
        inbox = self.raw.dimse.inbox
        messages: list[Message] = []
        try:
            _, message = inbox.get(timeout=0 if inbox.is_closed else seconds)
            while message is not None:
                messages.append(message)
                if len(messages) == _BATCH:
                    break
                _, message = inbox.get_nowait()
            if messages and message is None:
                # There will be no more. Whoever asks next is to learn that at once, after having seen these.
                inbox.put_over((None, None))
        except queue.Empty:
            pass
        return messages

    @property
    def waiting(self) -> int:
        """Messages that are here, and not yet received."""
        return len(self._messages)

    async def receive(self, seconds: float) -> Message:
        """The peer's next message."""
        if not self._messages:
            self._messages.extend(await self.run_blocking(self._take, seconds))
        if self._messages:
            return self._messages.popleft()
        if self.raw.acse.is_release_requested():
            await self._released_by_peer()
        error = self._why(OperationTimeout(f"{self.modality}: no answer in {seconds:g} s"))
        await self.abort()
        raise error

    # -- ending -------------------------------------------------------------------------------------------------------

    async def release(self) -> None:
        """Release the association."""
        if self._closed:
            return
        try:
            if self.outstanding is not None:
                await self.outstanding.stop()
            if self.is_established:
                with Stopwatch(self.phases, "release"):
                    await self.run_blocking(self.raw.release)
        finally:
            with anyio.CancelScope(shield=True):
                await self.abort()

    async def abort(self) -> None:
        """Abort the association, and give back its threads and descriptors."""
        if self._closed:
            return
        self._closed = True
        raw = self.raw
        if not raw.is_released:
            raw.request_abort()
        # A job that no thread has taken yet would be lost with whoever waits for it.
        await to_its_end(asyncio.get_running_loop().run_in_executor(workers(), raw.close_down))


def _negotiation_items(modality: Modality, asked: AssociateRequest) -> Iterable[Any]:
    """The user-information items of a request (PS3.7 D.3.3)."""
    for role in asked.roles:
        item: Any = SCP_SCU_RoleSelectionNegotiation()
        item.sop_class_uid = UID(role.sop_class)
        item.scu_role = role.scu
        item.scp_role = role.scp
        # pynetdicom's own refuses neither role, which PS3.7 D.3.3.4 can say.
        item.from_primitive = functools.partial(_sub_item, SCP_SCU_RoleSelectionSubItem, item)
        yield item
    for extension in asked.extended:
        extended = SOPClassExtendedNegotiation()
        extended.sop_class_uid = UID(extension.sop_class)
        extended.service_class_application_information = extension.information
        yield extended
    if modality.user_identity is not None:
        identity: Any = UserIdentityNegotiation()
        identity.user_identity_type = modality.user_identity.type_code
        identity.primary_field = modality.user_identity.primary
        if modality.user_identity.type_code == 2:
            identity.secondary_field = modality.user_identity.secondary
        identity.positive_response_requested = modality.user_identity.response
        # pynetdicom's own refuses an empty passcode.
        identity.from_primitive = functools.partial(_sub_item, UserIdentitySubItemRQ, identity)
        yield identity


def _sub_item(kind: type[Any], primitive: Any) -> Any:
    item = kind()
    item.from_primitive(primitive)
    return item
