"""The exchanges of engine ``pynetdicom``: one request and its responses, up to the last or to a C-CANCEL."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any, Self

import anyio
from pydicom.uid import UID
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, C_FIND, C_GET, C_MOVE, C_STORE

from asyncdicom.association.contract import CANCEL_GRACE, InstanceHandler, Response, Stopwatch
from asyncdicom.association.hardened import HardenedAssociation
from asyncdicom.association.query import Match, Query, decode_dataset
from asyncdicom.association.received import Received
from asyncdicom.errors import DatasetError, FailureStatus, OperationError
from asyncdicom.outcome import Status, SubOperations
from asyncdicom.upper_layer.context import AcceptedContext

if TYPE_CHECKING:
    from asyncdicom.association.bridge import BridgedAssociation

_RESPONSE_TO = {C_ECHO: C_ECHO, C_FIND: C_FIND, C_MOVE: C_MOVE, C_GET: C_GET, C_STORE: C_STORE}


class Exchange:
    """One request and its responses."""

    def __init__(self, association: BridgedAssociation, primitive: Any, context: AcceptedContext, patience: float) -> None:
        self.association = association
        self.context = context
        self._primitive = primitive
        self._patience = patience
        self._messages: deque[Any] = deque()
        self._is_over = False

    async def start(self) -> None:
        """Send the request."""
        self.association.outstanding = self
        await self.association.send(self._primitive, self.context)

    async def next(self, serve: Callable[[Any], Awaitable[None]] | None = None) -> Any:
        """The next response.

        :param serve: takes the C-STORE requests that come in between
        """
        while True:
            while self._messages:
                message = self._messages.popleft()
                if isinstance(message, C_STORE) and message.is_valid_request and serve is not None:
                    await serve(message)
                    continue
                if not isinstance(message, _RESPONSE_TO[type(self._primitive)]) or not message.is_valid_response:
                    raise await self.association.fail("a message that is no answer to what was asked")
                if message.MessageIDBeingRespondedTo != self._primitive.MessageID:
                    raise await self.association.fail("an answer to another message")
                return message
            self._messages.extend(await self.association.receive(self._patience))

    def finished(self) -> None:
        """The final response is here."""
        self._is_over = True
        if self.association.outstanding is self:
            self.association.outstanding = None

    async def stop(self) -> None:
        """Stop the peer: C-CANCEL, a grace, then A-ABORT."""
        if self._is_over:
            return
        association = self.association
        if not association.is_established:
            self.finished()
            return
        cancel = C_CANCEL()
        cancel.MessageIDBeingRespondedTo = self._primitive.MessageID
        try:
            with anyio.fail_after(CANCEL_GRACE), anyio.CancelScope():
                await association.send(cancel, self.context)
                self._patience = CANCEL_GRACE
                while Status((await self.next(self._refuse)).Status).category == "Pending":
                    pass
        except TimeoutError:
            await association.abort()
        except OperationError:
            # It is over one way or the other: the peer has been stopped, which was all that was wanted.
            await association.abort()
        finally:
            self.finished()

    async def _refuse(self, message: Any) -> None:
        # An instance that was on its way when we cancelled: processing failure, so that the peer does not count it as kept.
        await self.association.call(_answer_store, self.association.raw, message, 0xC000)


def _answer_store(raw: HardenedAssociation, request: Any, status: int) -> None:
    # On a worker.
    response = C_STORE()
    response.MessageIDBeingRespondedTo = request.MessageID
    response.AffectedSOPClassUID = request.AffectedSOPClassUID
    response.AffectedSOPInstanceUID = request.AffectedSOPInstanceUID
    response.Status = status
    raw.dimse.send_msg(response, request._context_id)


class Finding:
    """The matches of a C-FIND."""

    def __init__(self, association: BridgedAssociation, query: Query, limit: int | None) -> None:
        self._association = association
        self._query = query
        self._limit = limit
        self._count = 0
        self._exchange: Exchange | None = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def _start(self) -> Exchange:
        association = self._association
        context = association.context_for(self._query.find_sop_class)
        await association.begin()
        primitive = C_FIND()
        primitive.MessageID = association.next_message_id()
        primitive.AffectedSOPClassUID = UID(self._query.find_sop_class)
        primitive.Priority = 0
        primitive.Identifier = BytesIO(self._query.encode(context.transfer_syntax))
        self._exchange = Exchange(association, primitive, context, association.modality.timeouts.operation)
        await self._exchange.start()
        return self._exchange

    async def __anext__(self) -> Match:
        if self._is_over:
            raise StopAsyncIteration
        if self._limit is not None and self._count >= self._limit:
            await self.aclose()
            raise StopAsyncIteration
        association = self._association
        with Stopwatch(association.phases, "operation"):
            exchange = self._exchange or await self._start()
            response = await exchange.next()
            status = Status(response.Status)
            if status.category == "Pending":
                self._count += 1
                encoded = response.Identifier.getvalue() if response.Identifier is not None else b""
                return Match(encoded, exchange.context.transfer_syntax, status, (association.modality.name,))
        self._is_over = True
        exchange.finished()
        if status.category == "Failure":
            raise FailureStatus(status, f"{association.modality}: {_in_words(status, response)}")
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop the peer."""
        self._is_over = True
        if self._exchange is not None:
            await self._exchange.stop()


class Retrieving:
    """The responses to a C-MOVE or C-GET."""

    def __init__(
        self,
        association: BridgedAssociation,
        query: Query,
        sop_class: str,
        primitive: Any,
        patience: float,
        handler: InstanceHandler | None,
    ) -> None:
        self._association = association
        self._query = query
        self._sop_class = sop_class
        self._primitive = primitive
        self._patience = patience
        self._handler = handler
        self._exchange: Exchange | None = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def _start(self) -> Exchange:
        association = self._association
        context = association.context_for(self._sop_class)
        await association.begin()
        primitive = self._primitive
        primitive.MessageID = association.next_message_id()
        primitive.AffectedSOPClassUID = UID(self._sop_class)
        primitive.Priority = 0
        primitive.Identifier = BytesIO(self._query.encode(context.transfer_syntax))
        self._exchange = Exchange(association, primitive, context, self._patience)
        await self._exchange.start()
        return self._exchange

    async def __anext__(self) -> Response:
        if self._is_over:
            raise StopAsyncIteration
        with Stopwatch(self._association.phases, "operation"):
            exchange = self._exchange or await self._start()
            response = await exchange.next(self._serve)
            status = Status(response.Status)
            failed: tuple[str, ...] = ()
            if status.category != "Pending":
                self._is_over = True
                exchange.finished()
                failed = await self._association.call(_failed_instances, response, exchange.context.transfer_syntax)
        counts = SubOperations(
            response.NumberOfRemainingSuboperations or 0,
            response.NumberOfCompletedSuboperations or 0,
            response.NumberOfFailedSuboperations or 0,
            response.NumberOfWarningSuboperations or 0,
        )
        return Response(status, counts, failed)

    @property
    def message_id(self) -> int:
        """The Message ID of the request; 0 before it is sent."""
        return int(self._primitive.MessageID or 0)

    async def _serve(self, message: Any) -> None:
        """Take one instance that the peer sends us (PS3.4 C.4.3.3)."""
        association = self._association
        context = next((c for c in association.accepted if c.context_id == message._context_id), None)
        if context is None:
            raise await association.fail("an instance on a presentation context that was not agreed")
        if self._handler is None or not context.as_scp:
            status = 0x0122  # SOP class not supported
        else:
            data = message.DataSet.getbuffer() if message.DataSet is not None else b""
            status = await self._handler(
                Received(
                    data=data,
                    sop_class_uid=str(message.AffectedSOPClassUID),
                    sop_instance_uid=str(message.AffectedSOPInstanceUID),
                    transfer_syntax_uid=context.transfer_syntax,
                    calling_ae_title=association.modality.ae_title,
                    peer_address=association.modality.host,
                )
            )
        await association.call(_answer_store, association.raw, message, int(status))

    async def aclose(self) -> None:
        """Stop the peer."""
        self._is_over = True
        if self._exchange is not None:
            await self._exchange.stop()


def _failed_instances(response: Any, transfer_syntax: str) -> tuple[str, ...]:
    # On a worker. The list is optional and comes from the peer (PS3.4 C.4.2.1.4.2).
    if response.Identifier is None:
        return ()
    try:
        value = decode_dataset(response.Identifier.getvalue(), transfer_syntax).get("FailedSOPInstanceUIDList")
    except DatasetError:
        return ()
    if not value:
        return ()
    return (str(value),) if isinstance(value, str) else tuple(str(uid) for uid in value)


def _in_words(status: Status, response: Any) -> str:
    # The comment is the peer's text and may name a patient: it is for the caller of the library, who gets it by the status.
    offending = getattr(response, "OffendingElement", None)
    return f"status 0x{int(status):04X}" + (f", offending element {offending}" if offending else "")
