"""Engine ``pynetdicom``: its threaded association, awaited.

The connection is made on the loop (:mod:`asyncdicom.association.transport`); pynetdicom gets a connected socket. Its blocking
calls then run on threads of our own. A caller that is cancelled aborts the association, which brings the thread back.
"""

from __future__ import annotations

import asyncio
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import anyio
from pydicom.uid import UID
from pynetdicom.ae import ApplicationEntity
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
from asyncdicom.association.primitives import to_message, to_primitive
from asyncdicom.association.query import Query
from asyncdicom.association.workers import workers
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
)
from asyncdicom.modality import Modality
from asyncdicom.outcome import Peer, Phases
from asyncdicom.upper_layer.context import AcceptedContext, PresentationContext
from asyncdicom.upper_layer.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from asyncdicom.upper_layer.message import Command, Message

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
    sock = await transport.connect(modality, phases)
    try:
        peer_address = sock.getpeername()
    except OSError as error:
        sock.close()
        raise ConnectionLost(f"{modality}: {os.strerror(error.errno or 0)}") from error
    association = BridgedAssociation(modality, phases)
    with Stopwatch(phases, "associate"):
        await association._request(sock, peer_address, calling_ae_title, contexts, query)
    return association


class BridgedAssociation(Dialogue):
    """A pynetdicom association, awaited."""

    raw: HardenedAssociation

    def __init__(self, modality: Modality, phases: Phases) -> None:
        super().__init__(modality, phases)
        self._messages: deque[Message] = deque()
        self._closed = False

    # -- establishing -------------------------------------------------------------------------------------------------

    async def _request(
        self,
        sock: Any,
        peer_address: Any,
        calling_ae_title: str,
        contexts: Sequence[PresentationContext],
        query: Query | None,
    ) -> None:
        limits, timeouts = self.modality.limits, self.modality.timeouts
        try:
            ae = ApplicationEntity(calling_ae_title)
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
            await self.run_blocking(self._negotiate, peer_address, contexts, query)
            if not raw.is_established:
                raise self._why(AssociateTimeout(f"{self.modality}: no answer in {timeouts.associate:g} s"))
            self.accepted = tuple(self._agreed(contexts))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.abort()
            raise
        raw.transport.deadline = None
        raw.acse_timeout = timeouts.release
        self.peer = Peer(
            str(raw.acceptor.implementation_class_uid or "") or None,
            raw.acceptor.implementation_version_name or None,
        )

    def _agreed(self, contexts: Sequence[PresentationContext]) -> Iterable[AcceptedContext]:
        """The contexts that the peer accepted.

        :raises ProtocolError: when it accepted what was not proposed, or announced a maximum length that nothing fits into
        """
        raw = self.raw
        _ = raw.dimse.maximum_pdu_size  # It raises where there is none.
        accepted = {int(context.context_id or 0): context for context in raw.accepted_contexts}
        answer: Any = raw.acceptor.primitive
        for answered in answer.presentation_context_definition_results_list:
            if answered.result == 0 and answered.context_id not in accepted:
                raise ProtocolError(f"{self.modality}: accepted a presentation context that was not proposed")
        for context_id, context in accepted.items():
            syntax = str(context.transfer_syntax[0]) if context.transfer_syntax else ""
            # Contexts are numbered 1, 3, 5 ... in the order in which they are proposed.
            if syntax not in contexts[context_id // 2].transfer_syntaxes:
                raise ProtocolError(f"{self.modality}: chose a transfer syntax that was not proposed")
            yield AcceptedContext(context_id, str(context.abstract_syntax), syntax, bool(context.as_scu), bool(context.as_scp))

    def _negotiate(self, peer_address: Any, contexts: Sequence[PresentationContext], query: Query | None) -> None:
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
        for number, context in enumerate(contexts):
            item = build_context(context.abstract_syntax, list(context.transfer_syntaxes))
            item.context_id = 2 * number + 1
            proposed.append(item)
        raw.requestor.requested_contexts = proposed
        for item in _negotiation_items(modality, contexts, query):
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
        if answer is not None and answer.result == 0 and not raw.accepted_contexts:
            return NoPresentationContext(f"{who}: accepted none of the presentation contexts")
        match raw.fault:
            case Fault.CLOSED:
                return ConnectionLost(f"{who}: the peer closed the connection")
            case Fault.RESET:
                return ConnectionLost(f"{who}: the connection was reset")
            case Fault.PROTOCOL:
                return ProtocolError(f"{who}: the peer sent what is not DICOM, or what is out of turn")
            case Fault.TOO_LARGE:
                return ProtocolError(f"{who}: the peer sent a message over the limit of {who.limits.max_object_size} bytes")
            case Fault.STALLED:
                return timeout
        abort = raw.dul.received_abort
        if abort is not None:
            return AssociationAborted(
                f"{who}: the peer aborted the association",
                source=getattr(abort, "abort_source", 2),
                diagnostic=getattr(abort, "provider_reason", None),
            )
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
        try:
            await self.run_blocking(self.raw.dimse.send_msg, primitive, context.context_id)
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
            context_id, primitive = inbox.get(timeout=0 if inbox.is_closed else seconds)
            while primitive is not None:
                messages.append(to_message(context_id, primitive))
                if len(messages) == _BATCH:
                    break
                context_id, primitive = inbox.get_nowait()
            if messages and primitive is None:
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
        future = asyncio.get_running_loop().run_in_executor(workers(), raw.close_down)
        with anyio.CancelScope(shield=True):
            await future


def _negotiation_items(modality: Modality, contexts: Iterable[PresentationContext], query: Query | None) -> Iterable[Any]:
    """The user-information items of a request (PS3.7 D.3.3)."""
    for context in contexts:
        if context.scp_role is not None or context.scu_role is not None:
            role = SCP_SCU_RoleSelectionNegotiation()
            role.sop_class_uid = UID(context.abstract_syntax)
            role.scu_role = bool(context.scu_role)
            role.scp_role = bool(context.scp_role)
            yield role
    if query is not None and query.extended_negotiation:
        extended = SOPClassExtendedNegotiation()
        extended.sop_class_uid = UID(query.find_sop_class)
        extended.service_class_application_information = query.extended_negotiation
        yield extended
    if modality.user_identity is not None:
        identity = UserIdentityNegotiation()
        identity.user_identity_type = modality.user_identity.type_code
        identity.primary_field = modality.user_identity.primary
        if modality.user_identity.type_code == 2:
            identity.secondary_field = modality.user_identity.secondary
        identity.positive_response_requested = modality.user_identity.response
        yield identity
