"""The operations of an association, said in messages: what an engine need not know to carry them (PS3.7 sections 9 and 10)."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import anyio
from pydicom.dataset import Dataset

from asyncdicom.association.contract import CANCEL_GRACE, Association, InstanceHandler, Response, Stopwatch, StoreRequest
from asyncdicom.association.instance import Instance
from asyncdicom.association.query import Match, Query, decode_dataset, encode_dataset
from asyncdicom.association.received import Received
from asyncdicom.errors import DatasetError, FailureStatus, OperationError, ProtocolError
from asyncdicom.modality import Modality
from asyncdicom.outcome import Phases, Status, SubOperations
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer.context import VERIFICATION, AcceptedContext
from asyncdicom.upper_layer.message import Command, CommandField, Message

T = TypeVar("T")
Dataset_ = bytes | bytearray | memoryview | Instance | None

_SOP_CLASS_NOT_SUPPORTED = 0x0122
_PROCESSING_FAILURE = 0xC000


class Dialogue(Association):
    """An association whose engine carries messages.

    An engine provides :meth:`send`, :meth:`receive`, :meth:`run_blocking` and how it ends; everything that is said is here.

    :ivar outstanding: the exchange whose last response has not come
    """

    def __init__(self, modality: Modality, phases: Phases) -> None:
        super().__init__(modality, phases)
        # By chance, so that instances that come to us by C-MOVE can be told apart by the ID of the request (PS3.7 9.1.1.1).
        self._message_id = random.randrange(0xFFFF)  # noqa: S311 - to tell apart, not to keep secret
        self.outstanding: Exchange | None = None

    @abstractmethod
    async def send(self, context: AcceptedContext, command: Command, dataset: Dataset_ = None) -> None:
        """Send a message.

        :raises OperationError: when the association does not survive it
        :raises DatasetError: when the instance's file cannot be read
        """

    @abstractmethod
    async def receive(self, seconds: float) -> Message:
        """The peer's next message.

        :param seconds: how long the peer may say nothing
        :raises OperationError: when none comes; the association is over then
        """

    def prepare(self, context: AcceptedContext, command: Command, dataset: Dataset_) -> None:
        """Do what there is to do before a message can be sent, so that nobody waits for it then."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Messages that are here, and not yet received."""

    @abstractmethod
    async def run_blocking(self, function: Callable[..., T], *args: Any) -> T:
        """Run what blocks on a thread."""

    @abstractmethod
    def ending(self) -> OperationError:
        """Why the association is over."""

    async def begin(self) -> None:
        """Get ready for an operation: stop what is outstanding.

        :raises OperationError: when the association is over
        """
        if self.outstanding is not None:
            await self.outstanding.stop()
        if not self.is_established:
            raise self.ending()

    def next_message_id(self) -> int:
        """A Message ID (PS3.7 E.1); 0 is avoided, because some peers take it for missing."""
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id

    async def fail(self, detail: str) -> ProtocolError:
        """Abort, because of what the peer said; returns what to raise."""
        await self.abort()
        return ProtocolError(f"{self.modality}: {detail}")

    async def ask(self, context: AcceptedContext, command: Command, dataset: Dataset_ = None) -> Message:
        """Send a request that has one response, and return that."""
        with Stopwatch(self.phases, "operation"):
            exchange = Exchange(self, context, command, self.modality.timeouts.operation)
            await exchange.start(dataset)
            response = await exchange.next()
            exchange.finished()
            return response

    # -- DIMSE-C ------------------------------------------------------------------------------------------------------

    async def echo(self) -> Status:
        """C-ECHO."""
        context = self.context_for(VERIFICATION)
        await self.begin()
        command = dimse.request(CommandField.C_ECHO_RQ, self.next_message_id(), VERIFICATION, dataset=False)
        return Status((await self.ask(context, command)).command.status)

    def find(self, query: Query, *, limit: int | None = None) -> Finding:
        """C-FIND."""
        return Finding(self, query, limit)

    def move(self, query: Query, *, to: str) -> Retrieving:
        """C-MOVE."""
        return Retrieving(
            self, query, CommandField.C_MOVE_RQ, query.move_sop_class, self.modality.timeouts.move, destination=to
        )

    def get(self, query: Query, handler: InstanceHandler) -> Retrieving:
        """C-GET."""
        return Retrieving(
            self, query, CommandField.C_GET_RQ, query.get_sop_class, self.modality.timeouts.operation, handler=handler
        )

    def prepare_store(self, instance: Instance) -> StoreRequest:
        """Make the request of a C-STORE."""
        request = self._request_store(instance)
        self.prepare(request.context, request.command, instance)
        return request

    def _request_store(self, instance: Instance, ae_title: str | None = None, message_id: int | None = None) -> StoreRequest:
        context = self.context_for(instance.sop_class_uid, instance.transfer_syntax_uid)
        command = dimse.request(
            CommandField.C_STORE_RQ,
            self.next_message_id(),
            instance.sop_class_uid,
            dataset=True,
            AffectedSOPInstanceUID=instance.sop_instance_uid,
            MoveOriginatorApplicationEntityTitle=ae_title,
            MoveOriginatorMessageID=message_id,
        )
        return StoreRequest(context, command, instance)

    async def begin_store(
        self,
        instance: Instance | StoreRequest | Dataset | str | Path,
        *,
        move_originator_ae_title: str | None = None,
        move_originator_message_id: int | None = None,
    ) -> Storing:
        """Send the request of a C-STORE."""
        if isinstance(instance, StoreRequest):
            request = instance
        else:
            if isinstance(instance, str | Path):
                instance = await self.run_blocking(Instance.read, instance)
            elif isinstance(instance, Dataset):
                instance = Instance.of(instance)
            request = self._request_store(instance, move_originator_ae_title, move_originator_message_id)
        await self.begin()
        phases = self.phases
        with Stopwatch(phases, "operation"):
            exchange = Exchange(self, request.context, request.command, self.modality.timeouts.operation)
            await exchange.start(request.instance)
        return Storing(exchange, phases)

    # -- DIMSE-N ------------------------------------------------------------------------------------------------------

    async def _normalized(
        self, field: CommandField, sop_class_uid: str, dataset: Dataset | None, **elements: Any
    ) -> tuple[Status, Dataset | None]:
        context = self.context_for(sop_class_uid)
        encoded = None if dataset is None else encode_dataset(dataset, context.transfer_syntax)
        await self.begin()
        command = dimse.request(field, self.next_message_id(), sop_class_uid, dataset=encoded is not None, **elements)
        response = await self.ask(context, command, encoded)
        answer = None
        if response.data is not None:
            try:
                answer = decode_dataset(bytes(response.data), context.transfer_syntax)
            except DatasetError as error:
                raise await self.fail(str(error)) from error
        return Status(response.command.status), answer

    async def n_event_report(
        self, event_type: int, sop_class_uid: str, sop_instance_uid: str, dataset: Dataset | None = None
    ) -> tuple[Status, Dataset | None]:
        """N-EVENT-REPORT."""
        return await self._normalized(
            CommandField.N_EVENT_REPORT_RQ,
            sop_class_uid,
            dataset,
            AffectedSOPInstanceUID=sop_instance_uid,
            EventTypeID=event_type,
        )

    async def n_get(
        self, attributes: Sequence[int], sop_class_uid: str, sop_instance_uid: str
    ) -> tuple[Status, Dataset | None]:
        """N-GET."""
        return await self._normalized(
            CommandField.N_GET_RQ,
            sop_class_uid,
            None,
            RequestedSOPInstanceUID=sop_instance_uid,
            AttributeIdentifierList=tuple(int(tag) for tag in attributes) or None,
        )

    async def n_set(self, modifications: Dataset, sop_class_uid: str, sop_instance_uid: str) -> tuple[Status, Dataset | None]:
        """N-SET."""
        return await self._normalized(
            CommandField.N_SET_RQ, sop_class_uid, modifications, RequestedSOPInstanceUID=sop_instance_uid
        )

    async def n_action(
        self, action_type: int, sop_class_uid: str, sop_instance_uid: str, dataset: Dataset | None = None
    ) -> tuple[Status, Dataset | None]:
        """N-ACTION."""
        return await self._normalized(
            CommandField.N_ACTION_RQ,
            sop_class_uid,
            dataset,
            RequestedSOPInstanceUID=sop_instance_uid,
            ActionTypeID=action_type,
        )

    async def n_create(
        self, attributes: Dataset | None, sop_class_uid: str, sop_instance_uid: str | None = None
    ) -> tuple[Status, Dataset | None]:
        """N-CREATE."""
        return await self._normalized(
            CommandField.N_CREATE_RQ, sop_class_uid, attributes, AffectedSOPInstanceUID=sop_instance_uid
        )

    async def n_delete(self, sop_class_uid: str, sop_instance_uid: str) -> Status:
        """N-DELETE."""
        status, _ = await self._normalized(
            CommandField.N_DELETE_RQ, sop_class_uid, None, RequestedSOPInstanceUID=sop_instance_uid
        )
        return status


class Exchange:
    """One request and its responses, up to the last or to a C-CANCEL.

    :param patience: seconds that the peer may take for each response
    """

    def __init__(self, dialogue: Dialogue, context: AcceptedContext, command: Command, patience: float) -> None:
        self.dialogue = dialogue
        self.context = context
        self.command = command
        self._patience = patience
        self._is_over = False

    async def start(self, dataset: Dataset_ = None) -> None:
        """Send the request."""
        self.dialogue.outstanding = self
        await self.dialogue.send(self.context, self.command, dataset)

    async def next(self, serve: Callable[[Message], Awaitable[None]] | None = None) -> Message:
        """The next response.

        :param serve: takes the C-STORE requests that come in between
        :raises OperationError: when none comes, or it is none; the association is over then
        """
        dialogue = self.dialogue
        while True:
            message = await dialogue.receive(self._patience)
            command = message.command
            if all(context.context_id != message.context_id for context in dialogue.accepted):
                raise await dialogue.fail("a message on a presentation context that was not accepted")
            try:
                if serve is not None and command.field == CommandField.C_STORE_RQ:
                    await serve(message)
                    continue
                is_answer = command.field == self.command.field | dimse.RESPONSE
                wrong = "an answer to another message" if is_answer else "a message that is no answer to what was asked"
                if is_answer and command.responded_to == self.command.message_id and command.status is not None:
                    return message
            except ProtocolError as error:
                wrong = error.detail
            raise await dialogue.fail(wrong)

    def finished(self) -> None:
        """The final response is here."""
        self._is_over = True
        if self.dialogue.outstanding is self:
            self.dialogue.outstanding = None

    async def stop(self) -> None:
        """Stop the peer: C-CANCEL, a grace, then A-ABORT."""
        if self._is_over:
            return
        dialogue = self.dialogue
        try:
            if dialogue.is_established:
                with anyio.fail_after(CANCEL_GRACE):
                    await dialogue.send(self.context, dimse.cancel(self.command.message_id))
                    while Status((await self.next(self._refuse)).command.status).category == "Pending":
                        pass
        except (TimeoutError, OperationError):
            # It is over one way or the other: the peer has been stopped, which was all that was wanted.
            await dialogue.abort()
        finally:
            self.finished()

    async def _refuse(self, message: Message) -> None:
        # An instance that was on its way when we cancelled: a failure, so that the peer does not count it as kept.
        await self.answer(message, _PROCESSING_FAILURE)

    async def answer(self, message: Message, status: int) -> None:
        """Answer a request of the peer's on its own context."""
        context = next(c for c in self.dialogue.accepted if c.context_id == message.context_id)
        await self.dialogue.send(context, dimse.response(message.command, status))


class Storing:
    """A C-STORE whose request is sent."""

    def __init__(self, exchange: Exchange, phases: Phases) -> None:
        self._exchange = exchange
        self._phases = phases

    async def status(self) -> Status:
        """Wait for the answer."""
        with Stopwatch(self._phases, "operation"):
            response = await self._exchange.next()
            self._exchange.finished()
        return Status(response.command.status)


R = TypeVar("R", Match, Response)


class _Answers(Generic[R]):
    """What C-FIND, C-MOVE and C-GET have in common: an identifier goes out, answers come until one is the last."""

    def __init__(
        self, dialogue: Dialogue, query: Query, field: CommandField, sop_class: str, patience: float, **elements: Any
    ) -> None:
        self._dialogue = dialogue
        self._query = query
        self._field = field
        self._sop_class = sop_class
        self._patience = patience
        self._elements = elements
        self._exchange: Exchange | None = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    @property
    def message_id(self) -> int:
        """The Message ID of the request; 0 before it is sent."""
        return 0 if self._exchange is None else self._exchange.command.message_id

    async def started(self) -> Exchange:
        """The exchange, begun if need be."""
        if self._exchange is None:
            dialogue = self._dialogue
            context = dialogue.context_for(self._sop_class)
            identifier = self._query.encode(context.transfer_syntax)
            await dialogue.begin()
            command = dimse.request(self._field, dialogue.next_message_id(), self._sop_class, dataset=True, **self._elements)
            self._exchange = Exchange(dialogue, context, command, self._patience)
            await self._exchange.start(identifier)
        return self._exchange

    async def aclose(self) -> None:
        """Stop the peer."""
        self._is_over = True
        if self._exchange is not None:
            await self._exchange.stop()


class Finding(_Answers[Match]):
    """The matches of a C-FIND."""

    def __init__(self, dialogue: Dialogue, query: Query, limit: int | None) -> None:
        super().__init__(dialogue, query, CommandField.C_FIND_RQ, query.find_sop_class, dialogue.modality.timeouts.operation)
        self._limit = limit
        self._count = 0

    @property
    def waiting(self) -> int:
        """Answers that are here, and not yet asked for."""
        return self._dialogue.waiting

    async def __anext__(self) -> Match:
        if self._limit is not None and self._count >= self._limit and not self._is_over:
            await self.aclose()
        if self._is_over:
            raise StopAsyncIteration
        modality = self._dialogue.modality
        with Stopwatch(self._dialogue.phases, "operation"):
            exchange = await self.started()
            message = await exchange.next()
        status = Status(message.command.status)
        if status.category == "Pending":
            self._count += 1
            encoded = b"" if message.data is None else bytes(message.data)
            return Match(encoded, exchange.context.transfer_syntax, status, (modality.name,))
        self._is_over = True
        exchange.finished()
        if status.category == "Failure":
            # The comment is the peer's text and may name a patient, so it stays out of what ends up in logs.
            raise FailureStatus(status, f"{modality}: status 0x{int(status):04X}")
        raise StopAsyncIteration


class Retrieving(_Answers[Response]):
    """The responses to a C-MOVE or C-GET."""

    def __init__(
        self,
        dialogue: Dialogue,
        query: Query,
        field: CommandField,
        sop_class: str,
        patience: float,
        *,
        destination: str | None = None,
        handler: InstanceHandler | None = None,
    ) -> None:
        super().__init__(dialogue, query, field, sop_class, patience, MoveDestination=destination)
        self._handler = handler

    async def __anext__(self) -> Response:
        if self._is_over:
            raise StopAsyncIteration
        with Stopwatch(self._dialogue.phases, "operation"):
            exchange = await self.started()
            message = await exchange.next(self._serve)
        command = message.command
        status = Status(command.status)
        failed: tuple[str, ...] = ()
        if status.category != "Pending":
            self._is_over = True
            exchange.finished()
            failed = _failed_instances(message, exchange.context.transfer_syntax)
        counts = SubOperations(
            *(command.get(f"NumberOf{kind}Suboperations") or 0 for kind in ("Remaining", "Completed", "Failed", "Warning"))
        )
        return Response(status, counts, failed)

    async def _serve(self, message: Message) -> None:
        """Take one instance that the peer sends us (PS3.4 C.4.3.3)."""
        dialogue = self._dialogue
        command = message.command
        context = next((c for c in dialogue.accepted if c.context_id == message.context_id), None)
        if self._handler is None or context is None or not context.as_scp or message.data is None:
            status = _SOP_CLASS_NOT_SUPPORTED
        else:
            status = await self._handler(
                Received(
                    data=message.data,
                    sop_class_uid=command.sop_class_uid,
                    sop_instance_uid=command.sop_instance_uid,
                    transfer_syntax_uid=context.transfer_syntax,
                    calling_ae_title=dialogue.modality.ae_title,
                    peer_address=dialogue.modality.host,
                )
            )
        assert self._exchange is not None  # noqa: S101 - it is what asked for this
        await self._exchange.answer(message, int(status))


def _failed_instances(message: Message, transfer_syntax: str) -> tuple[str, ...]:
    # The list is optional and comes from the peer (PS3.4 C.4.2.1.4.2).
    if message.data is None:
        return ()
    try:
        value = decode_dataset(bytes(message.data), transfer_syntax).get("FailedSOPInstanceUIDList")
    except DatasetError:
        return ()
    if not value:
        return ()
    return (str(value),) if isinstance(value, str) else tuple(str(uid) for uid in value)
