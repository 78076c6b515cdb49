"""The same conversation with each engine as requestor, through a proxy that writes down what was said."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import anyio

from asyncdicom import (
    Association,
    AssociationAborted,
    DatasetError,
    Instance,
    OperationError,
    PresentationContext,
    Query,
    Received,
    Timeouts,
    associate,
)
from asyncdicom.modality import Engine
from asyncdicom.outcome import rejection_of, status_of
from asyncdicom.testing import HeldInstance, SimulatedModality, Wire, synthetic_instance
from asyncdicom.upper_layer import context as uid
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.message import Message, MessageReader
from asyncdicom.upper_layer.negotiation import AssociateAccept, ContextResult
from asyncdicom.upper_layer.pdu import PDUType
from tests.association.scripted import Script, Scripted, scripted
from tests.differences import agree
from tests.recording import Spoken, Words, recording

ENGINES: tuple[Engine, ...] = ("native", "pynetdicom")
# Nothing that is answered takes so long; where nothing is, the test says how long to wait for it.
PATIENT = Timeouts(resolve=5.0, connect=5.0, associate=5.0, operation=5.0, release=5.0, move=5.0)
SHORT = 0.2

HELD = HeldInstance.read(synthetic_instance(16, 16))
CT = HELD.sop_class_uid
FILM_SESSION = "1.2.840.10008.5.1.1.1"
INSTANCE_UID = "1.2.826.0.1.3680043.9.9999.1"

ECHO = (PresentationContext(uid.VERIFICATION),)
CONTEXTS = (
    *ECHO,
    PresentationContext(uid.STUDY_ROOT_FIND),
    PresentationContext(uid.STUDY_ROOT_MOVE),
    PresentationContext(uid.STUDY_ROOT_GET),
    PresentationContext(CT, (HELD.transfer_syntax_uid,), scu_role=True, scp_role=True),
    PresentationContext(FILM_SESSION),
)

Ask = Callable[[Association, list[Any]], Awaitable[None]]
Peer = Callable[[], AbstractAsyncContextManager[Any]]


@dataclass
class Conversation:
    """What came of one conversation.

    :ivar came: what the caller got, in order; how it ended is the last
    :ivar spoken: what was said to the peer
    :ivar peer: what the peer remembers
    """

    came: list[Any] = field(default_factory=list)
    spoken: Spoken = field(default_factory=Spoken)
    peer: Any = None

    @property
    def said(self) -> list[Words]:
        """What was said to the peer, aborts excepted: those are held against the standard by themselves."""
        return [words for words in self.spoken.said if words[0] != "A-ABORT"]

    @property
    def aborts(self) -> list[tuple[int, int]]:
        """Source and reason of the A-ABORTs (PS3.8 Table 9-26)."""
        return [(words[2][2], words[2][3]) for words in self.spoken.said if words[0] == "A-ABORT"]


async def converse(
    engine: Engine,
    peer: Peer,
    ask: Ask,
    *,
    contexts: Sequence[PresentationContext] | None = None,
    query: Query | None = None,
    remembered: Callable[[Any], Any] = lambda peer: None,
    **fields: Any,
) -> Conversation:
    """Have a conversation.

    :param remembered: what to compare of what the peer remembers
    :param fields: of the modality
    """
    told = Conversation()
    fields.setdefault("timeouts", PATIENT)
    async with peer() as there, recording(there.port) as tape:
        modality = dataclasses.replace(there.modality(**fields), port=tape.port)
        try:
            async with associate(
                modality, engine=engine, calling_ae_title="DIFF", contexts=contexts, query=query
            ) as association:
                told.came.append((association.accepted, association.peer))
                await ask(association, told.came)
        except AssociationAborted as error:
            told.came.append((error.reason, error.source, error.diagnostic))
        except OperationError as error:
            told.came.append((error.reason, rejection_of(error), status_of(error)))
        except (DatasetError, ValueError) as error:
            told.came.append(type(error).__name__)
        await tape.finished()
        told.peer = remembered(there)
        told.spoken, _ = tape.both()
    return told


async def both(peer: Peer, ask: Ask, **settings: Any) -> tuple[Conversation, Conversation]:
    """Have a conversation with each engine; what came of it must be the same."""
    told: dict[Engine, Conversation] = {}

    async def have(engine: Engine) -> None:
        told[engine] = await converse(engine, peer, ask, **settings)

    async with anyio.create_task_group() as tasks:
        for engine in ENGINES:
            tasks.start_soon(have, engine)
    native, bridge = (told[engine] for engine in ENGINES)
    for aspect in ("came", "said", "peer"):
        agree(aspect, getattr(native, aspect), getattr(bridge, aspect))
    return native, bridge


async def each(peer: Peer, asks: Mapping[str, Ask], **settings: Any) -> None:
    """Have several conversations with each engine, all at once; each must come to the same."""
    told: dict[tuple[str, Engine], Conversation] = {}

    async def have(name: str, engine: Engine) -> None:
        told[name, engine] = await converse(engine, peer, asks[name], **settings)

    async with anyio.create_task_group() as tasks:
        for name in asks:
            for engine in ENGINES:
                tasks.start_soon(have, name, engine)
    for aspect in ("came", "said", "peer"):
        native, bridge = ({name: getattr(told[name, engine], aspect) for name in asks} for engine in ENGINES)
        agree(aspect, native, bridge)


# -- what is asked ----------------------------------------------------------------------------------------------------


async def nothing(association: Association, came: list[Any]) -> None:
    """Associate, and release."""


async def echo(association: Association, came: list[Any]) -> None:
    """C-ECHO."""
    came.append(await association.echo())


async def find(association: Association, came: list[Any], query: Query | None = None, limit: int | None = None) -> None:
    """C-FIND; datasets are compared by value where they can be decoded."""
    async for match in association.find(query or Query(keys={"PatientID": "1"}), limit=limit):
        try:
            came.append((match.status, match.sources, match.dataset.to_json_dict()))
        except DatasetError:
            came.append((match.status, "no dataset"))


async def move(association: Association, came: list[Any]) -> None:
    """C-MOVE."""
    responses = association.move(Query(keys={"StudyInstanceUID": HELD.keys["StudyInstanceUID"]}), to="DEST")
    came.extend([response async for response in responses])


async def get(association: Association, came: list[Any]) -> None:
    """C-GET."""

    async def keep(received: Received) -> int:
        came.append((received.sop_class_uid, received.sop_instance_uid, received.transfer_syntax_uid, bytes(received.data)))
        return 0xB000

    responses = association.get(Query(keys={"StudyInstanceUID": HELD.keys["StudyInstanceUID"]}), keep)
    came.extend([response async for response in responses])


async def store(association: Association, came: list[Any]) -> None:
    """C-STORE of the held instance."""
    came.append(await association.store(instance(bytes(HELD.dataset))))


async def n_get(association: Association, came: list[Any]) -> None:
    """N-GET."""
    came.append(await association.n_get([0x20000010], FILM_SESSION, INSTANCE_UID))


OPERATIONS: dict[str, Ask] = {"echo": echo, "find": find, "move": move, "get": get, "store": store, "n_get": n_get}


def instance(data: bytes, **fields: Any) -> Instance:
    """An instance whose dataset is any bytes."""
    fields = {"sop_instance_uid": INSTANCE_UID, "transfer_syntax_uid": HELD.transfer_syntax_uid} | fields
    return Instance(CT, data=data, size=len(data), **fields)


# -- who answers ------------------------------------------------------------------------------------------------------


def counters(sim: SimulatedModality) -> tuple[Any, ...]:
    """What a simulated modality remembers. How an association was aborted is held against the standard by itself."""
    return (
        (sim.associations, sim.rejections, sim.releases_received, sim.cancels_received),
        (sim.echoes, sim.finds, sim.moves, sim.gets, sim.stores),
        [dataclasses.replace(stored, move_originator_message_id=None) for stored in sim.stored],
        list(sim.protocol_errors),
    )


async def listen(wire: Wire) -> None:
    """Answer a request for release, and hear the rest out."""
    while (found := await wire.receive_pdu()) is not None:
        if found.type == PDUType.RELEASE_RQ:
            await wire.send(pdu.encode_release_rp())
        elif found.type == PDUType.ABORT:
            return


def saying(answer: bytes, *, close: bool = False) -> Peer:
    """A peer that says certain bytes in answer to a request for association."""

    async def script(wire: Wire) -> None:
        await wire.receive_pdu()
        await wire.send(answer)
        if not close:
            await listen(wire)

    return lambda: scripted(script)


def accepting(
    edit: Callable[[AssociateAccept], AssociateAccept] = lambda answer: answer,
    encoded: Callable[[bytes], bytes] = lambda answer: answer,
    then: Script = listen,
) -> Callable[[], AbstractAsyncContextManager[Scripted]]:
    """A peer that accepts everything.

    :param edit: changes its acceptance
    :param encoded: changes its acceptance as bytes
    :param then: what it does afterwards
    """

    async def script(wire: Wire) -> None:
        found = await wire.receive_pdu()
        if found is None or found.type != PDUType.ASSOCIATE_RQ:
            return
        request = negotiation.decode_request(found.body)
        wire.max_length = request.max_length
        answer = AssociateAccept(
            request.called_ae_title,
            request.calling_ae_title,
            tuple(ContextResult(context.context_id, 0, context.transfer_syntaxes[0]) for context in request.contexts),
            roles=request.roles,
            extended=request.extended,
        )
        await wire.send(encoded(negotiation.encode_accept(edit(answer))))
        await then(wire)

    return lambda: scripted(script)


async def acknowledge(wire: Wire) -> None:
    """Answer every request with success, without a dataset, until the association is released."""
    reader = MessageReader(1 << 30)
    while (found := await wire.receive_pdu()) is not None:
        if found.type == PDUType.RELEASE_RQ:
            await wire.send(pdu.encode_release_rp())
            continue
        if found.type != PDUType.DATA_TF:
            return
        for value in pdu.decode_data(found.body):
            whole = reader.receive(value)
            if whole is not None:
                await wire.send_message(whole.context_id, dimse.response(whole.command, 0x0000))


def answering(reply: Callable[[Message], bytes]) -> Peer:
    """A peer that accepts everything and answers the first message in a certain way."""

    async def then(wire: Wire) -> None:
        await wire.send(reply(await wire.receive_message()))
        await listen(wire)

    return accepting(then=then)
