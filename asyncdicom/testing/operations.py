"""What a simulated modality does with an operation (PS3.7 section 9.1, PS3.4 Annexes B, C and K)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import cycle
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset

from asyncdicom.errors import OperationError, ProtocolError
from asyncdicom.outcome import Status, SubOperations
from asyncdicom.testing.content import HeldInstance, Stored, decode_dataset, encode_dataset
from asyncdicom.testing.wire import Delivery, sender
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.context import AcceptedContext
from asyncdicom.upper_layer.message import Command, CommandField, Message

if TYPE_CHECKING:
    from asyncdicom.testing.served import Served

SUCCESS = 0x0000
PENDING = 0xFF00
CANCELLED = 0xFE00
# PS3.4 Tables C.4-2 and C.4-3.
SOME_FAILED = 0xB000
NO_SUB_OPERATION_POSSIBLE = 0xA702
DESTINATION_UNKNOWN = 0xA801
# What a sub-operation counts as when the instance did not get through at all (PS3.4 Table B.2-1: cannot understand).
NOT_DELIVERED = 0xC000

# Many small matches go out in one write: a system call each would cost more than the match.
_BATCH = 65_536

_QUERIES = frozenset({CommandField.C_FIND_RQ, CommandField.C_GET_RQ, CommandField.C_MOVE_RQ})


def perform(served: Served, message: Message, *, endless: bool) -> None:
    """Answer an operation, at once or in a task of the connection's own.

    :param endless: answer queries and retrievals with Pending until C-CANCEL comes
    """
    field = message.command.field
    if field == CommandField.C_ECHO_RQ:
        served.send(message.context_id, dimse.response(message.command, SUCCESS))
    elif field == CommandField.C_STORE_RQ:
        _store(served, message)
    elif field in _QUERIES:
        context = served.contexts[message.context_id]
        identifier = decode_dataset(message.data, context.transfer_syntax)
        served.modality.queries.append(identifier)
        if endless:
            served.start(_endless(served, message, context, identifier))
        elif field == CommandField.C_FIND_RQ:
            served.start(_find(served, message, context, identifier))
        elif field == CommandField.C_GET_RQ:
            served.start(_get(served, message, context, identifier))
        else:
            served.start(_move(served, message, context, identifier))
    else:
        # DIMSE-N: acknowledged and shown to the test, whatever it is.
        served.modality.normalized.append(message)
        served.send(message.context_id, dimse.response(message.command, SUCCESS))


def _store(served: Served, message: Message) -> None:
    modality, command = served.modality, message.command
    stored = Stored.keep(
        modality.keep,
        message.data or b"",
        sop_class_uid=command.sop_class_uid,
        sop_instance_uid=command.sop_instance_uid,
        transfer_syntax_uid=served.contexts[message.context_id].transfer_syntax,
        calling_ae_title=served.calling_ae_title,
        status=modality.store_status,
        move_originator_ae_title=command.get("MoveOriginatorApplicationEntityTitle"),
        move_originator_message_id=command.get("MoveOriginatorMessageID"),
    )
    modality.stored.append(stored)
    served.send(message.context_id, dimse.response(command, stored.status))


async def _find(served: Served, message: Message, context: AcceptedContext, identifier: Dataset) -> None:
    command, interval = message.command, served.behaviour.interval
    matches = served.modality.encoded_matches(identifier, context.transfer_syntax)
    await _send_matches(served, message, matches, interval)
    cancelled = command.message_id in served.cancelled
    served.send(message.context_id, dimse.response(command, CANCELLED if cancelled else SUCCESS))


async def _send_matches(served: Served, message: Message, matches: Iterator[bytes], interval: float) -> None:
    """Send Pending responses until there are no more matches, or C-CANCEL came."""
    command, context_id, limit = message.command, message.context_id, served.max_length
    pending = dimse.encode_command(dimse.response(command, PENDING, dataset=True))
    head = pdu.encode_message(context_id, pending, max_length=limit)
    batch = bytearray()
    for match in matches:
        batch += head
        for part in pdu.encode_data(context_id, match, command=False, max_length=limit):
            batch += part
        if interval > 0 or len(batch) >= _BATCH:
            served.write(bytes(batch))
            batch.clear()
            await served.drained()
            # A C-CANCEL is read only while this rests.
            await asyncio.sleep(interval)
            if command.message_id in served.cancelled:
                return
    served.write(bytes(batch))


async def _endless(served: Served, message: Message, context: AcceptedContext, identifier: Dataset) -> None:
    command, interval = message.command, served.behaviour.interval
    if command.field == CommandField.C_FIND_RQ:
        matches = list(served.modality.encoded_matches(identifier, context.transfer_syntax))
        if not matches:
            matches = [encode_dataset(identifier, context.transfer_syntax)]
        await _send_matches(served, message, cycle(matches), interval)
    else:
        counts = _counts(SubOperations(remaining=1))
        while command.message_id not in served.cancelled:
            served.send(message.context_id, dimse.response(command, PENDING, **counts))
            await served.drained()
            await asyncio.sleep(interval)
    served.send(message.context_id, dimse.response(command, CANCELLED))


async def _get(served: Served, message: Message, context: AcceptedContext, identifier: Dataset) -> None:
    async def deliver(delivery: Delivery) -> int:
        return await _store_back(served, delivery.instance)

    await _retrieve(served, message, context, served.modality.held(identifier), deliver)


async def _store_back(served: Served, instance: HeldInstance) -> int:
    """Send an instance by C-STORE on the association that the C-GET came on (PS3.4 C.4.3)."""
    context = next(
        (
            found
            for found in served.contexts.values()
            if found.as_scp
            and found.abstract_syntax == instance.sop_class_uid
            and found.transfer_syntax == instance.transfer_syntax_uid
        ),
        None,
    )
    if context is None:
        return NOT_DELIVERED
    message_id = served.next_message_id()
    request = dimse.request(
        CommandField.C_STORE_RQ,
        message_id,
        instance.sop_class_uid,
        dataset=True,
        AffectedSOPInstanceUID=instance.sop_instance_uid,
    )
    waiting = served.responses[message_id] = asyncio.get_running_loop().create_future()
    try:
        async with asyncio.timeout(served.modality.sub_operation_timeout):
            await served.send_large(context.context_id, request, instance.dataset)
            answer: Command = await waiting
            return answer.status
    except TimeoutError:
        raise ProtocolError("the peer did not answer a C-STORE sub-operation") from None
    finally:
        served.responses.pop(message_id, None)


async def _move(served: Served, message: Message, context: AcceptedContext, identifier: Dataset) -> None:
    modality, command = served.modality, message.command
    destination = str(command.get("MoveDestination", ""))
    modality.move_destinations.append(destination)
    if modality.sub_operations is not None:
        final = modality.sub_operations
        served.send(
            message.context_id,
            dimse.response(command, PENDING, **_counts(SubOperations(remaining=final.total))),
        )
        await asyncio.sleep(served.behaviour.interval)
        _conclude(served, message, context, final, [])
        return
    instances = modality.held(identifier)
    if modality.deliver is not None:
        await _retrieve(served, message, context, instances, modality.deliver, destination)
    elif modality.destinations is None:
        await _retrieve(served, message, context, instances, _claim, destination)
    elif destination not in modality.destinations:
        served.send(message.context_id, dimse.response(command, DESTINATION_UNKNOWN))
    else:
        host, port = modality.destinations[destination]
        async with AsyncExitStack() as stack:
            deliver = await _reach(served, stack, host, port, destination, instances)
            await _retrieve(served, message, context, instances, deliver, destination)


async def _claim(delivery: Delivery) -> int:
    """Say that an instance was sent, without sending it."""
    return SUCCESS


async def _reach(
    served: Served, stack: AsyncExitStack, host: str, port: int, destination: str, instances: list[HeldInstance]
) -> Callable[[Delivery], Awaitable[int]]:
    """Open an association to a destination and return what delivers there; to one out of reach, all deliveries fail."""

    async def fail(delivery: Delivery) -> int:
        return NOT_DELIVERED

    if not instances:
        return fail
    opened = sender(host, port, instances, called_ae_title=destination, calling_ae_title=served.modality.ae_title)
    try:
        send = await stack.enter_async_context(opened)
    except (OperationError, OSError):
        return fail

    async def deliver(delivery: Delivery) -> int:
        try:
            return await send(delivery)
        except (OperationError, OSError):
            return NOT_DELIVERED

    return deliver


async def _retrieve(
    served: Served,
    message: Message,
    context: AcceptedContext,
    instances: list[HeldInstance],
    deliver: Callable[[Delivery], Awaitable[int]],
    destination: str = "",
) -> None:
    command = message.command
    completed = failed = warning = 0
    failures: list[str] = []
    for index, instance in enumerate(instances):
        if command.message_id in served.cancelled:
            break
        delivery = Delivery(instance, destination, served.calling_ae_title, command.message_id)
        category = Status(await deliver(delivery)).category
        completed += category == "Success"
        warning += category == "Warning"
        if category not in ("Success", "Warning"):
            failed += 1
            failures.append(instance.sop_instance_uid)
        counts = SubOperations(len(instances) - index - 1, completed, failed, warning)
        if counts.remaining:
            served.send(message.context_id, dimse.response(command, PENDING, **_counts(counts)))
            await served.drained()
            await asyncio.sleep(served.behaviour.interval)
    remaining = len(instances) - completed - failed - warning
    _conclude(served, message, context, SubOperations(remaining, completed, failed, warning), failures)


def _conclude(served: Served, message: Message, context: AcceptedContext, counts: SubOperations, failures: list[str]) -> None:
    """Send the final response of a C-GET or C-MOVE (PS3.4 C.4.2.1.4)."""
    command = message.command
    if command.message_id in served.cancelled and counts.remaining:
        status = CANCELLED
    elif counts.failed and not counts.completed and not counts.warning:
        status = NO_SUB_OPERATION_POSSIBLE
    elif counts.failed or counts.warning:
        status = SOME_FAILED
    else:
        status = SUCCESS
    dataset = None
    if failures:
        listing = Dataset()
        listing.FailedSOPInstanceUIDList = failures
        dataset = encode_dataset(listing, context.transfer_syntax)
    # Remaining sub-operations are told of in Pending and Cancel alone (PS3.7 section 9.3.3.2).
    elements = _counts(counts)
    if status != CANCELLED:
        del elements["NumberOfRemainingSuboperations"]
    answer: Command = dimse.response(command, status, dataset=dataset is not None, **elements)
    served.send(message.context_id, answer, dataset)


def _counts(counts: SubOperations) -> dict[str, Any]:
    return {
        "NumberOfRemainingSuboperations": counts.remaining,
        "NumberOfCompletedSuboperations": counts.completed,
        "NumberOfFailedSuboperations": counts.failed,
        "NumberOfWarningSuboperations": counts.warning,
    }
