"""Bar S1 at the requestor: whatever a peer answers, it ends in an answer or in an error of ours, and nothing is left."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from asyncdicom import (
    AsyncDicomError,
    DatasetError,
    Instance,
    Modality,
    OperationError,
    PresentationContext,
    Query,
    Received,
    Timeouts,
    associate,
)
from asyncdicom.association.contract import DEFAULT_CONTEXTS, contexts_for_get
from asyncdicom.modality import Engine, Limits
from asyncdicom.testing import HeldInstance, Wire, synthetic_instance
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.message import CommandField, Message
from asyncdicom.upper_layer.negotiation import AssociateAccept, AssociateRequest, ContextResult
from tests import fuzzing
from tests.association.scripted import Scripted, scripted
from tests.conftest import Baseline
from tests.mutation import Mutator, Segments, message

# Answers in the small form. The bridge spends a thread or two on each and is no default: fewer have to do.
TRIALS: dict[Engine, int] = {"native": 10_000, "pynetdicom": 300}
LONG_TRIALS: dict[Engine, int] = {"native": fuzzing.LONG_TRIALS, "pynetdicom": fuzzing.LONG_TRIALS // 20}
AT_ONCE: dict[Engine, int] = {"native": 160, "pynetdicom": 12}
TIMEOUTS = Timeouts(resolve=1.0, connect=2.0, associate=0.4, operation=0.3, release=0.2, move=0.3)
# No operation takes this long, however much goes wrong and however busy the machine: it hangs.
DEADLINE = 20.0
# Longer than any of our own deadlines: it is we who end it.
PATIENCE = 1.0
_ONE_BY_ONE = 50

# Small: some peers want it in fragments of two bytes.
HELD = HeldInstance.read(synthetic_instance(8, 8))
INSTANCE = Instance(
    HELD.sop_class_uid, HELD.sop_instance_uid, HELD.transfer_syntax_uid, size=len(HELD.dataset), data=bytes(HELD.dataset)
)
COMMITMENT = "1.2.840.10008.1.20.1"
# (0008,0052) and (0010,0020), in implicit VR little endian.
MATCH = b"\x08\x00\x52\x00\x06\x00\x00\x00STUDY \x10\x00\x20\x00\x04\x00\x00\x00PAT1"
QUERY = Query(level="study", keys={"PatientID": ""})
# The C-GET itself, and of what may come back one SOP class: more of them take time, and are negotiated like the one.
GET_CONTEXTS = (
    PresentationContext(QUERY.get_sop_class),
    next(context for context in contexts_for_get(QUERY) if context.abstract_syntax == HELD.sop_class_uid),
)
STORAGE_CONTEXT = 3
OPERATIONS = ("echo", "echo", "find", "find", "move", "get", "get", "store", "n_action")

# What it warns about is what it was sent: a broken UID is no fault of ours.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def acceptance(request: AssociateRequest, chance: random.Random) -> Segments:
    """The answer of a peer that takes everything."""
    answer = AssociateAccept(
        request.called_ae_title,
        request.calling_ae_title,
        tuple(ContextResult(context.context_id, 0, context.transfer_syntaxes[0]) for context in request.contexts),
        max_length=chance.choice((0, 7, 8, 101, 4_096, 4_097, 16_384, 131_072, 1 << 20, 0xFFFFFFFF)),
        roles=request.roles,
        other_items=() if chance.random() < 0.8 else ((0x5F, b"from the future"),),
    )
    return [negotiation.encode_accept(answer)]


def responses(asked: Message, chance: random.Random) -> Segments:
    """What a correct peer says to a request."""
    command, context_id = asked.command, asked.context_id
    match command.field:
        case CommandField.C_FIND_RQ:
            pending = message(context_id, dimse.response(command, 0xFF00, dataset=True), MATCH)
            return [*pending * chance.choice((0, 1, 3, 30)), *message(context_id, dimse.response(command, 0x0000))]
        case CommandField.C_GET_RQ | CommandField.C_MOVE_RQ:
            counts = {"NumberOfRemainingSuboperations": 1, "NumberOfCompletedSuboperations": 1}
            said = message(context_id, dimse.response(command, 0xFF00, **counts))
            if command.field == CommandField.C_GET_RQ:
                store = dimse.request(
                    CommandField.C_STORE_RQ, 77, HELD.sop_class_uid, dataset=True, AffectedSOPInstanceUID=HELD.sop_instance_uid
                )
                said += message(STORAGE_CONTEXT, store, bytes(HELD.dataset))
            return said + message(context_id, dimse.response(command, chance.choice((0x0000, 0xB000, 0xA702))))
    return message(context_id, dimse.response(command, chance.choice((0x0000, 0x0000, 0x0122))))


async def answers(wire: Wire) -> None:
    """The peer: it mutates one of its answers, by the seed that the caller's AE title is."""
    wire.timeout = PATIENCE
    found = await wire.receive_pdu()
    if found is None:
        return
    request = negotiation.decode_request(found.body)
    seed = f"answers to {request.calling_ae_title}"
    chance, mutator = random.Random(seed), Mutator(seed)
    broken = chance.choice((0, 1, 1, 1, 2))
    wire.max_length = request.max_length
    said = acceptance(request, chance)
    for turn in itertools.count():
        await say(wire, mutator.mutate(said) if said and turn == broken else said, chance)
        found = await wire.receive_pdu()
        if found is None:
            break
        if found.type == pdu.PDUType.DATA_TF:
            said = await answer_to(wire, found, chance)
        elif found.type == pdu.PDUType.RELEASE_RQ:
            said = [pdu.encode_release_rp()]
        else:
            break
    match chance.randrange(3):
        case 0:
            wire.reset()
        case 1:
            await wire.closed(PATIENCE)


async def answer_to(wire: Wire, found: pdu.PDU, chance: random.Random) -> Segments:
    """What is said to the message that begins with a PDU; nothing to a response or a C-CANCEL."""
    wire._values = list(pdu.decode_data(found.body))
    asked = await wire.receive_message()
    if asked.command.is_response or asked.command.field == CommandField.C_CANCEL_RQ:
        return []
    return responses(asked, chance)


async def say(wire: Wire, segments: Segments, chance: random.Random) -> None:
    """At once, or one by one as far as it goes: each takes a turn of a loop that all of them share."""
    one_by_one = 0 if chance.random() < 0.5 else _ONE_BY_ONE
    for segment in segments[:one_by_one]:
        await wire.send(segment)
        await anyio.lowlevel.checkpoint()
    if len(segments) > one_by_one:
        await wire.send(b"".join(segments[one_by_one:]))


async def operate(modality: Modality, engine: Engine, number: int) -> str:
    """Do one operation; an error of ours is an ending as good as an answer."""
    chance = random.Random(f"operation {number}")
    operation = chance.choice(OPERATIONS)
    contexts = {
        "get": GET_CONTEXTS,
        "store": (INSTANCE.context,),
        "n_action": (PresentationContext(COMMITMENT),),
    }.get(operation, DEFAULT_CONTEXTS)
    try:
        with anyio.fail_after(DEADLINE):
            async with associate(modality, calling_ae_title=f"{number}", contexts=contexts, engine=engine) as association:
                match operation:
                    case "echo":
                        await association.echo()
                        await association.echo()
                    case "find":
                        async for match in association.find(QUERY, limit=chance.choice((None, 1, 2))):
                            len(match.dataset)
                    case "move":
                        async for _ in association.move(QUERY, to="ELSEWHERE"):
                            pass
                    case "get":
                        async for _ in association.get(QUERY, keep):
                            pass
                    case "store":
                        await association.store(INSTANCE)
                    case "n_action":
                        await association.n_action(1, COMMITMENT, "1.2.840.10008.1.20.1.1")
    except OperationError as error:
        return error.reason
    except DatasetError:
        return "dataset"
    return "ok"


async def keep(received: Received) -> int:
    assert received.size <= 1 << 20
    return 0x0000


async def fuzz(engine: Engine, played: list[int]) -> Counter[str]:
    endings: Counter[str] = Counter()
    with fuzzing.watching() as watch:
        async with scripted(answers) as peer:
            modality = peer.modality(timeouts=TIMEOUTS, limits=Limits(max_pdu=16_384, max_object_size=1 << 20))
            await operate_quietly(modality, engine, peer)
            baseline = Baseline()
            before = await fuzzing.resident()
            left = iter(played)

            async def player() -> None:
                for seed in left:
                    with watch.play(seed):
                        endings[await operate(modality, engine, seed)] += 1

            async with anyio.create_task_group() as players:
                for _ in range(AT_ONCE[engine]):
                    players.start_soon(player)
            # Ours are gone already; the peer's own tasks may wait for the end of their scripts.
            await baseline.settle(max(PATIENCE, TIMEOUTS.associate) + 1.0)
            assert await fuzzing.resident() - before < fuzzing.MAX_RSS_GROWTH
        watch.check()
    return endings


async def operate_quietly(modality: Modality, engine: Engine, peer: Scripted) -> None:
    """What is made once, threads of the pool and the like, is not to be counted."""
    with suppress(AsyncDicomError):
        await operate(modality, engine, -1)
    assert peer.connections == 1


@pytest.mark.timeout(120)
async def test_whatever_a_peer_answers_nothing_breaks_and_nothing_is_left(no_leaks: object, engine: Engine) -> None:
    played = fuzzing.seeds(0, TRIALS[engine])
    endings = await fuzz(engine, played)
    assert endings.total() == len(played)
    if len(played) >= 100:
        # The mutations reach everything: some do no harm, some are errors of each kind.
        assert {"ok", "protocol_error", "aborted", "connection_lost", "operation_timeout"} <= set(endings), endings


@pytest.mark.soak
@pytest.mark.timeout(7_200)
async def test_whatever_many_peers_answer_nothing_breaks_and_nothing_is_left(no_leaks: object, engine: Engine) -> None:
    await fuzz(engine, fuzzing.seeds(TRIALS[engine], LONG_TRIALS[engine]))
