"""The same bytes for the storage SCP of each engine, and what it answered, kept and reported."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from asyncdicom import OperationError, OperationTimeout, Received, StorageSCP
from asyncdicom.modality import Engine
from asyncdicom.testing import HeldInstance, Wire, synthetic_instance
from asyncdicom.upper_layer import context as uid
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.message import CommandField
from asyncdicom.upper_layer.negotiation import AssociateRequest, ProposedContext
from asyncdicom.upper_layer.pdu import PDU, PDUType
from tests.differences import agree
from tests.recording import Spoken, Words, spoken
from tests.scp.conftest import Seen

ENGINES: tuple[Engine, ...] = ("native", "pynetdicom")

HELD = HeldInstance.read(synthetic_instance(16, 16))
CT = HELD.sop_class_uid
INSTANCE_UID = HELD.sop_instance_uid
# Answers come at once; what has not come by then does not come.
_SILENCE = 1.0
RELEASE = pdu.encode_release_rq()


@dataclass(frozen=True)
class Step:
    """One thing that a peer says.

    :ivar said: the bytes
    :ivar answers: how many answers are waited for before the next is said: messages, or other PDUs
    """

    said: bytes
    answers: int = 1


@dataclass
class Answered:
    """What a storage SCP made of a conversation.

    :ivar spoken: its answers
    :ivar kept: what its handler was given
    :ivar reported: what its observer was told
    """

    spoken: Spoken = field(default_factory=Spoken)
    kept: list[Words] = field(default_factory=list)
    reported: Words = ()

    @property
    def said(self) -> list[Words]:
        """Its answers, aborts without their reason: that is held against the standard by itself."""
        return [(words[0],) if words[0] == "A-ABORT" else words for words in self.spoken.said]

    @property
    def aborts(self) -> list[tuple[int, int]]:
        """Source and reason of its A-ABORTs (PS3.8 Table 9-26)."""
        return [(words[2][2], words[2][3]) for words in self.spoken.said if words[0] == "A-ABORT"]


async def converse(engine: Engine, steps: Sequence[Step], status: int = 0x0000, **settings: Any) -> Answered:
    """Say the steps one after the other, each when the one before was answered, and hear the answers out.

    :param status: what the handler answers
    """
    answered = Answered()
    seen = Seen()

    async def keep(received: Received) -> int:
        answered.kept.append(
            (
                (received.sop_class_uid, received.sop_instance_uid, received.transfer_syntax_uid),
                (received.calling_ae_title, received.called_ae_title),
                (received.move_originator_ae_title, received.move_originator_message_id),
                bytes(received.data),
                bytes(received.encoded),
            )
        )
        return status

    heard: list[PDU] = []
    async with StorageSCP(keep, port=0, engine=engine, observer=seen, **settings) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            with suppress(OperationError):
                for step in steps:
                    await wire.send(step.said)
                    await _hear(wire, heard, step.answers)
                await _hear(wire, heard, 1 << 16)
        await seen.settled()
    answered.spoken = spoken(b"".join(pdu.encode_pdu(PDUType(found.type), bytes(found.body)) for found in heard))
    answered.reported = (seen.accepted, dict(seen.rejected), dict(seen.aborted), dict(seen.statuses))
    return answered


async def _hear(wire: Wire, heard: list[PDU], count: int) -> None:
    """Hear so many answers; fewer when the peer falls silent.

    :raises OperationError: when the connection is over
    """
    answers = 0
    while answers < count:
        try:
            found = await wire.receive_pdu(_SILENCE)
        except OperationTimeout:
            return
        if found is None:
            raise OperationError("over")
        heard.append(found)
        # Answers have no dataset: with the last fragment of the command set they are whole (PS3.8 Annex E).
        answers += found.type != PDUType.DATA_TF or found.body[5] & 2 != 0
        if found.type == PDUType.RELEASE_RP:
            # It is for the requestor to close (PS3.8 AR-3).
            raise OperationError("over")


async def both(steps: Sequence[Step], **settings: Any) -> tuple[Answered, Answered]:
    """Have a conversation with each engine; it must make the same of it."""
    native, bridge = await asyncio.gather(*(converse(engine, steps, **settings) for engine in ENGINES))
    for aspect in ("said", "kept", "reported"):
        agree(aspect, getattr(native, aspect), getattr(bridge, aspect))
    return native, bridge


# -- what is said -----------------------------------------------------------------------------------------------------

SYNTAXES = (uid.EXPLICIT_VR_LITTLE_ENDIAN, uid.IMPLICIT_VR_LITTLE_ENDIAN)
CONTEXTS = (
    ProposedContext(1, uid.VERIFICATION, SYNTAXES),
    ProposedContext(3, CT, (HELD.transfer_syntax_uid,)),
    # Nobody accepts this one.
    ProposedContext(5, uid.STUDY_ROOT_FIND, SYNTAXES),
)


def asking(*contexts: ProposedContext, **fields: Any) -> Step:
    """A request for association."""
    return Step(negotiation.encode_request(AssociateRequest("ANY-SCP", "DIFF", contexts or CONTEXTS, **fields)))


def whole(context_id: int, command: dict[str, Any], dataset: bytes | None = None, *, max_length: int = 16_384) -> bytes:
    """A message."""
    return pdu.encode_message(context_id, dimse.encode_command(command), dataset, max_length=max_length)


def echo(message_id: int = 1, context_id: int = 1) -> Step:
    """C-ECHO."""
    return Step(whole(context_id, dimse.request(CommandField.C_ECHO_RQ, message_id, uid.VERIFICATION, dataset=False)))


def store(message_id: int = 1, context_id: int = 3, data: bytes | None = None, sop_class: str = CT, **elements: Any) -> Step:
    """C-STORE."""
    elements = {"AffectedSOPInstanceUID": INSTANCE_UID} | elements
    command = dimse.request(CommandField.C_STORE_RQ, message_id, sop_class, dataset=True, **elements)
    return Step(whole(context_id, command, bytes(HELD.dataset) if data is None else data))


def ended(*steps: Step) -> list[Step]:
    """A conversation that ends in a release."""
    return [*steps, Step(RELEASE)]
