"""The engines against each other, as storage SCPs: messages right and wrong, in tables and by chance."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from asyncdicom.modality import Engine
from asyncdicom.upper_layer import context as uid
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.message import Command, CommandField
from asyncdicom.upper_layer.negotiation import AssociateAccept, ProposedContext
from tests.differences import allow, cases
from tests.mutation import values
from tests.scp.differential import (
    CT,
    ENGINES,
    HELD,
    INSTANCE_UID,
    RELEASE,
    Answered,
    Step,
    asking,
    both,
    converse,
    echo,
    ended,
    store,
    whole,
)

# pynetdicom hands UIDs that are none to pydicom, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DATA = bytes(HELD.dataset)
LONG_UID = "1.2." + "3" * 61

# -- operations that a storage SCP does not have ----------------------------------------------------------------------

OPERATIONS: dict[CommandField, dict[str, Any]] = {
    CommandField.C_FIND_RQ: {},
    CommandField.C_GET_RQ: {},
    CommandField.C_MOVE_RQ: {"MoveDestination": "DEST"},
    CommandField.N_EVENT_REPORT_RQ: {"AffectedSOPInstanceUID": "1.2.3", "EventTypeID": 1},
    CommandField.N_GET_RQ: {"RequestedSOPInstanceUID": "1.2.3"},
    CommandField.N_SET_RQ: {"RequestedSOPInstanceUID": "1.2.3"},
    CommandField.N_ACTION_RQ: {"RequestedSOPInstanceUID": "1.2.3", "ActionTypeID": 1},
    CommandField.N_CREATE_RQ: {"AffectedSOPInstanceUID": "1.2.3"},
    CommandField.N_DELETE_RQ: {"RequestedSOPInstanceUID": "1.2.3"},
}
QUERIES = (CommandField.C_FIND_RQ, CommandField.C_GET_RQ, CommandField.C_MOVE_RQ)
IDENTIFIER = b"\x08\0\x52\0CS\x06\0STUDY "


def operation(field: CommandField, context_id: int, sop_class: str, message_id: int = 1) -> Step:
    """A whole request for an operation."""
    dataset = None if field in (CommandField.N_GET_RQ, CommandField.N_DELETE_RQ) else IDENTIFIER
    command = dimse.request(field, message_id, sop_class, dataset=dataset is not None, **OPERATIONS[field])
    return Step(whole(context_id, command, dataset))


@pytest.mark.parametrize("field", OPERATIONS)
async def test_an_operation_on_the_context_of_verification_is_answered_the_same(no_leaks: object, field: CommandField) -> None:
    await both(ended(asking(), operation(field, 1, uid.VERIFICATION), echo(2)))


@pytest.mark.parametrize("field", OPERATIONS)
async def test_an_operation_on_the_context_of_storage_is_answered_the_same(no_leaks: object, field: CommandField) -> None:
    await both(ended(asking(), operation(field, 3, CT), echo(2)))


@pytest.mark.parametrize("field", QUERIES)
async def test_a_query_on_a_foreign_context_is_answered_the_same(no_leaks: object, field: CommandField) -> None:
    await both(ended(asking(), operation(field, 1, uid.STUDY_ROOT_FIND), echo(2)))


@pytest.mark.parametrize("field", [CommandField.C_STORE_RQ, CommandField.C_ECHO_RQ, *OPERATIONS])
async def test_a_response_to_nothing_is_answered_the_same(no_leaks: object, field: CommandField) -> None:
    command = Command(CommandField=field | 0x8000, MessageIDBeingRespondedTo=1, CommandDataSetType=0x0101, Status=0)
    await both(ended(asking(), Step(whole(3, command)), echo(2)))


# -- requests, right and wrong ----------------------------------------------------------------------------------------


def request(field: CommandField, context_id: int, sop_class: str, data: bytes | None, **elements: Any) -> dict[str, Any]:
    """A command set; elements that are None are not in it."""
    command: dict[str, Any] = dimse.request(field, 1, sop_class, dataset=data is not None)
    if field == CommandField.C_STORE_RQ:
        command["AffectedSOPInstanceUID"] = INSTANCE_UID
    command.update(elements)
    return {keyword: value for keyword, value in command.items() if value is not None}


def storing(**elements: Any) -> Step:
    """A C-STORE with certain elements."""
    return Step(whole(3, request(CommandField.C_STORE_RQ, 3, CT, DATA, **elements), DATA))


def echoing(**elements: Any) -> Step:
    """A C-ECHO with certain elements."""
    return Step(whole(1, request(CommandField.C_ECHO_RQ, 1, uid.VERIFICATION, None, **elements)))


def edited(edit: Callable[[bytes], bytes]) -> Step:
    """A C-STORE whose command set is changed as bytes."""
    command = edit(dimse.encode_command(request(CommandField.C_STORE_RQ, 3, CT, DATA)))
    return Step(pdu.encode_message(3, command, DATA, max_length=16_384))


def element(number: int, value: bytes) -> bytes:
    """An element of a command set."""
    return struct.pack("<HHI", 0, number, len(value)) + value


COMMAND = dimse.encode_command(request(CommandField.C_STORE_RQ, 3, CT, DATA))
UID_ELEMENT = element(0x1000, INSTANCE_UID.encode() + b"\0" * (len(INSTANCE_UID) % 2))
ID_ELEMENT, TYPE_ELEMENT, FIELD_ELEMENT = element(0x0110, b"\1\0"), element(0x0800, b"\1\0"), element(0x0100, b"\1\0")
PRIORITY_ELEMENT = element(0x0700, b"\0\0")

MESSAGES: dict[str, Any] = {
    "no priority": storing(Priority=None),
    "low priority": storing(Priority=2),
    "priority 7": storing(Priority=7),
    "no class": storing(AffectedSOPClassUID=None),
    "no instance": storing(AffectedSOPInstanceUID=None),
    "no message ID": storing(MessageID=None),
    "empty message ID": edited(lambda command: command.replace(ID_ELEMENT, element(0x0110, b""))),
    "long message ID": edited(lambda command: command.replace(ID_ELEMENT, element(0x0110, b"\1\0\2\0"))),
    "message ID 0": storing(MessageID=0),
    "the last message ID": storing(MessageID=0xFFFF),
    "other class": storing(AffectedSOPClassUID="1.2.840.10008.5.1.4.1.1.4"),
    "verification for a class": storing(AffectedSOPClassUID=uid.VERIFICATION),
    "no UID for a class": storing(AffectedSOPClassUID="abc"),
    "long class": storing(AffectedSOPClassUID=LONG_UID),
    "no UID for an instance": storing(AffectedSOPInstanceUID="abc"),
    "a path for an instance": storing(AffectedSOPInstanceUID="../../x"),
    "foreign letters in an instance": storing(AffectedSOPInstanceUID="1.\xe9"),
    "long instance": storing(AffectedSOPInstanceUID=LONG_UID),
    "two instances": storing(AffectedSOPInstanceUID="1.2\\1.3"),
    "instance padded by a space": edited(lambda command: command.replace(UID_ELEMENT, element(0x1000, b"1.2.3 "))),
    "instance of odd length": edited(lambda command: command.replace(UID_ELEMENT, element(0x1000, b"1.2"))),
    "moved": storing(MoveOriginatorApplicationEntityTitle="MOVER", MoveOriginatorMessageID=7),
    "moved by a padded title": storing(MoveOriginatorApplicationEntityTitle=" MOVER ", MoveOriginatorMessageID=7),
    "moved by nobody": storing(MoveOriginatorMessageID=0),
    "moved by a long title": storing(MoveOriginatorApplicationEntityTitle="M" * 20),
    "moved by foreign letters": storing(MoveOriginatorApplicationEntityTitle="caf\xe9"),
    "a message responded to": storing(MessageIDBeingRespondedTo=4),
    "a status": storing(Status=0),
    "a requested class": storing(RequestedSOPClassUID="1.2"),
    "unknown element": edited(lambda command: command + element(0x5555, b"ab")),
    "other group": edited(lambda command: command + struct.pack("<HHI", 8, 0x18, 2) + b"1\0"),
    "wrong group length": edited(lambda command: element(0, b"\5\0\0\0") + command[12:]),
    "no group length": edited(lambda command: command[12:]),
    "cut by a byte": edited(lambda command: command[:-1]),
    "cut by seven bytes": edited(lambda command: command[:-7]),
    "stray bytes": edited(lambda command: command + b"\0\0\0"),
    "unordered": edited(lambda command: command[:12] + PRIORITY_ELEMENT + command[12:].replace(PRIORITY_ELEMENT, b"")),
    "instance twice": edited(lambda command: command + element(0x1000, b"1.2.9\0")),
    "dataset type 0": edited(lambda command: command.replace(TYPE_ELEMENT, element(0x0800, b"\0\0"))),
    "dataset type 0x0102": edited(lambda command: command.replace(TYPE_ELEMENT, element(0x0800, b"\2\1"))),
    "no dataset type": edited(lambda command: command.replace(TYPE_ELEMENT, b"")),
    "no command field": edited(lambda command: command.replace(FIELD_ELEMENT, b"")),
    "unknown command field": (
        edited(lambda command: command.replace(FIELD_ELEMENT, element(0x0100, b"\x34\x12"))),
        "an operation that nobody knows is answered with 0x0211 (PS3.7 C.5), as native does; the bridge aborts",
    ),
    "no dataset": Step(whole(3, request(CommandField.C_STORE_RQ, 3, CT, None))),
    "empty dataset": store(data=b""),
    "garbage for a dataset": store(data=b"\xff" * 100),
    "an echo with a dataset": Step(whole(1, request(CommandField.C_ECHO_RQ, 1, uid.VERIFICATION, b"ab"), b"ab")),
    "an echo without a class": echoing(AffectedSOPClassUID=None),
    "an echo of another class": echoing(AffectedSOPClassUID=CT),
    "an echo with an instance": echoing(AffectedSOPInstanceUID="1.2"),
    "an echo without a message ID": echoing(MessageID=None),
    "an echo with a priority": echoing(Priority=2),
    "an echo on the context of storage": echo(1, 3),
    "an instance on the context of verification": store(1, 1),
    "a rejected context": echo(1, 5),
    "a foreign context": echo(1, 99),
    "a cancel": Step(whole(3, dimse.cancel(1)), answers=0),
    "a cancel without a message": Step(whole(3, Command(CommandField=0x0FFF, CommandDataSetType=0x0101)), answers=0),
    "a cancel with a dataset": Step(whole(3, {**dimse.cancel(1), "CommandDataSetType": 1}, b"ab"), answers=0),
    "a cancel on a rejected context": Step(whole(5, dimse.cancel(1)), answers=0),
}


@pytest.mark.parametrize("said", cases(MESSAGES))
async def test_a_message_is_answered_and_kept_the_same(no_leaks: object, said: Step) -> None:
    await both(ended(asking(), said, echo(2)))


# What is due by PS3.7, where both engines could come to the same and be wrong: the status, or None for an A-ABORT. Nothing of
# it is kept.
DUE: dict[str, int | None] = {
    **dict.fromkeys(("cut by a byte", "cut by seven bytes", "stray bytes", "other group", "long message ID"), None),
    **dict.fromkeys(("no message ID", "empty message ID", "a cancel on a rejected context"), None),
    **dict.fromkeys(("long class", "long instance", "two instances", "no class", "no instance"), 0xC000),
    **dict.fromkeys(("empty dataset", "no dataset"), 0xC000),
    **dict.fromkeys(("an echo without a class", "an echo of another class", "an echo on the context of storage"), 0x0122),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", DUE)
async def test_what_cannot_be_done_is_not_done_and_told(no_leaks: object, name: str, engine: Engine) -> None:
    answered = await converse(engine, ended(asking(), MESSAGES[name]))
    due = DUE[name]
    assert _statuses(answered) == ([] if due is None else [due])
    assert len(answered.aborts) == (due is None)
    assert not answered.kept


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("field", OPERATIONS)
async def test_an_operation_that_is_not_ours_has_its_own_response(
    no_leaks: object, field: CommandField, engine: Engine
) -> None:
    for context_id, sop_class in ((1, uid.VERIFICATION), (3, CT)):
        answered = await converse(engine, ended(asking(), operation(field, context_id, sop_class)))
        assert _statuses(answered) == [0x0211]
        assert ("(0000,0100)", struct.pack("<H", field | 0x8000)) in answered.said[1][2]


def _statuses(answered: Answered) -> list[int]:
    """The statuses of the responses."""
    return [
        int.from_bytes(value, "little")
        for words in answered.said
        if words[0] == "message"
        for tag, value in words[2]
        if tag == "(0000,0900)"
    ]


# -- fragments and PDUs -----------------------------------------------------------------------------------------------

FRAGMENTS: dict[str, Any] = {
    "several values in a PDU": values((3, 1, COMMAND[:5]), (3, 3, COMMAND[5:]), (3, 0, DATA[:7]), (3, 2, DATA[7:])),
    "across the border": values((3, 1, COMMAND[:5])) + values((3, 3, COMMAND[5:]), (3, 0, DATA[:7])) + values((3, 2, DATA[7:])),
    "empty fragments": values((3, 3, COMMAND)) + values((3, 0, b"")) + values((3, 0, DATA)) + values((3, 2, b"")),
    "reserved control bits": values((3, 0xF3, COMMAND), (3, 0xF2, DATA)),
    "reserved byte": echo().said[:1] + b"\7" + echo().said[2:],
    "dataset first": values((3, 2, DATA)),
    "dataset on another context": values((3, 3, COMMAND)) + values((1, 2, DATA)),
    "command on two contexts": values((3, 1, COMMAND[:8])) + values((1, 3, COMMAND[8:])),
    "value without a length": pdu.encode_pdu(4, struct.pack(">I", 0)),
    "value of a byte": pdu.encode_pdu(4, struct.pack(">IB", 1, 1)),
    "value that is too long": pdu.encode_pdu(4, struct.pack(">IBB", 99, 1, 3) + b"ab"),
    "longer than announced": values((3, 0, bytes(140_000))),
    "second request": asking().said,
    "acceptance": negotiation.encode_accept(AssociateAccept("A", "B", ())),
    "rejection": pdu.encode_reject(1, 1, 1),
    "release response": pdu.encode_release_rp(),
    "unknown PDU": b"\x08\0\0\0\0\4\0\0\0\0",
    "garbage": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "lying length": b"\4\0\xff\xff\xff\xff",
    "long release": pdu.encode_pdu(5, bytes(10)),
    "long abort": pdu.encode_pdu(7, bytes(10)),
    "short abort": pdu.encode_pdu(7, bytes(2)),
    "stray bytes after a value": echo().said[:2] + struct.pack(">I", len(echo().said) - 6 + 3) + echo().said[6:] + b"abc",
}


@pytest.mark.parametrize("said", cases(FRAGMENTS))
async def test_fragments_and_pdus_are_answered_the_same(no_leaks: object, said: bytes) -> None:
    await both(ended(asking(), Step(said), echo(2)))


UNNOTICED: dict[str, Any] = {
    "even context": values((2, 3, COMMAND)),
    "context 0": values((0, 3, COMMAND)),
    "command after command": values((3, 3, COMMAND)) + values((3, 3, COMMAND)),
    "command inside a dataset": values((3, 3, COMMAND)) + values((3, 0, DATA[:9])) + values((3, 3, COMMAND)),
    "no value": pdu.encode_pdu(4, b""),
    "half a command": values((3, 1, COMMAND[:9])),
    "half a dataset": values((3, 3, COMMAND)) + values((3, 0, DATA[:9])),
    "an echo that announces a dataset": (
        whole(1, {**request(CommandField.C_ECHO_RQ, 1, uid.VERIFICATION, None), "CommandDataSetType": 1}) + echo(2).said
    ),
}


@pytest.mark.parametrize("said", cases(UNNOTICED))
async def test_a_release_after_what_is_no_message_is_answered_the_same(no_leaks: object, said: bytes) -> None:
    await both([asking(), Step(said + RELEASE)])


# -- how we abort -----------------------------------------------------------------------------------------------------

# PS3.8 Table 9-10: before the association stands it is AA-1, by the user; then it is AA-8, by the provider. What is wrong with
# a message alone is the user's to find.
FIRST = {(0, 0)}
LATER = {(2, 0), (2, 1), (2, 2), (2, 4), (2, 5), (2, 6)}
WRONG_MESSAGE = {(0, 0), (2, 0)}
ABORTS: dict[str, tuple[list[Step], set[tuple[int, int]]]] = {
    "garbage first": ([Step(b"GET / HTTP/1.1\r\n\r\n")], FIRST),
    "data first": ([echo()], FIRST),
    "cut request": ([Step(asking().said[:2] + struct.pack(">I", len(asking().said) - 7) + asking().said[6:-1])], FIRST),
    "nothing fits in": ([asking(max_length=7)], FIRST | LATER),
    "garbage": ([asking(), Step(b"GET / HTTP/1.1\r\n\r\n")], LATER),
    "second request": ([asking(), asking()], LATER),
    "value of a byte": ([asking(), Step(FRAGMENTS["value of a byte"])], LATER),
    "rejected context": ([asking(), echo(1, 5)], LATER | WRONG_MESSAGE),
    "no command field": ([asking(), MESSAGES["no command field"]], WRONG_MESSAGE),
    "dataset first": ([asking(), Step(FRAGMENTS["dataset first"])], WRONG_MESSAGE),
    "too large": ([asking(), store()], WRONG_MESSAGE),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("steps", "allowed"), ABORTS.values(), ids=ABORTS)
async def test_an_abort_says_who_aborts_and_why(
    no_leaks: object, steps: list[Step], allowed: set[tuple[int, int]], engine: Engine
) -> None:
    limits = {"max_object_size": 100} if len(steps[-1].said) > len(DATA) else {}
    answered = await converse(engine, steps, **limits)
    assert len(answered.aborts) == 1
    allow("source and reason", answered.aborts[0], allowed)


# -- by chance --------------------------------------------------------------------------------------------------------

SYNTAXES = (
    *uid.UNCOMPRESSED,
    uid.EXPLICIT_VR_BIG_ENDIAN,
    uid.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.90",
)
CLASSES = (uid.VERIFICATION, CT, "1.2.840.10008.5.1.4.1.1.4", uid.STUDY_ROOT_FIND, "1.2.826.0.1.3680043.9.9999.4")
# What ends an association; whichever comes, nothing is said after it.
FATAL = [FRAGMENTS[name] for name in ("dataset first", "value of a byte", "garbage", "release response", "long release")]


@st.composite
def proposals(draw: st.DrawFn) -> tuple[ProposedContext, ...]:
    """Presentation contexts with several transfer syntaxes; each class once, or the engines choose differently."""
    classes = draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=len(CLASSES), unique=True))
    numbers = draw(st.lists(st.integers(0, 127), min_size=len(classes), max_size=len(classes), unique=True))
    syntaxes = st.lists(st.sampled_from(SYNTAXES), min_size=1, max_size=4, unique=True)
    return tuple(
        ProposedContext(2 * number + 1, abstract_syntax, tuple(draw(syntaxes)))
        for number, abstract_syntax in zip(numbers, classes, strict=True)
    )


@st.composite
def requests(draw: st.DrawFn, context: ProposedContext, message_id: int, fields: tuple[CommandField, ...]) -> Step:
    """One request on a context, right or with something amiss."""
    max_length = draw(st.sampled_from((8, 50, 16_384)))
    field = draw(st.sampled_from(fields))
    if field == CommandField.C_CANCEL_RQ:
        return Step(whole(context.context_id, dimse.cancel(message_id), max_length=max_length), answers=0)
    if field == CommandField.C_ECHO_RQ or context.abstract_syntax == uid.VERIFICATION:
        is_right = context.abstract_syntax == uid.VERIFICATION
        command = dimse.request(CommandField.C_ECHO_RQ, message_id, uid.VERIFICATION, dataset=False)
        if is_right:
            return Step(whole(context.context_id, command, max_length=max_length))
        field = CommandField.C_STORE_RQ
    if field != CommandField.C_STORE_RQ:
        return operation(field, context.context_id, context.abstract_syntax, message_id)
    data = draw(st.none() | st.binary(min_size=1, max_size=200))
    command = dimse.request(field, message_id, context.abstract_syntax, dataset=data is not None)
    command["Priority"] = draw(st.sampled_from((0, 1, 2)))
    command["AffectedSOPInstanceUID"] = f"1.2.{draw(st.integers(0, 10**20))}"
    for keyword in draw(st.sampled_from(((), (), (), ("AffectedSOPClassUID",), ("AffectedSOPInstanceUID",), ("Priority",)))):
        del command[keyword]
    if draw(st.booleans()):
        command.update(MoveOriginatorApplicationEntityTitle="MOVER", MoveOriginatorMessageID=draw(st.integers(0, 0xFFFF)))
    return Step(whole(context.context_id, command, data, max_length=max_length))


@st.composite
def conversations(draw: st.DrawFn, fields: tuple[CommandField, ...]) -> list[Step]:
    """A request for association, some requests, and an end."""
    contexts = draw(proposals())
    steps = [asking(*contexts, max_length=draw(st.sampled_from((0, 8, 4_095, 131_072))))]
    usable = [context for context in contexts if context.abstract_syntax != uid.STUDY_ROOT_FIND]
    if usable:
        for _ in range(draw(st.integers(0, 6))):
            message_id = draw(st.integers(0, 0xFFFF))
            steps.append(draw(requests(draw(st.sampled_from(usable)), message_id, fields)))
    # A rejected context is said something on last: that ends it.
    rejected = [echo(1, context.context_id) for context in contexts if context not in usable]
    ends = [Step(RELEASE), Step(pdu.encode_abort()), *(Step(said) for said in FATAL), *rejected]
    return [*steps, draw(st.sampled_from(ends))]


OURS = (CommandField.C_ECHO_RQ, CommandField.C_STORE_RQ, CommandField.C_STORE_RQ, CommandField.C_CANCEL_RQ)
STATUSES = st.sampled_from((0x0000, 0x0000, 0xB000, 0xA700))
BY_CHANCE: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@settings(max_examples=40, derandomize=True, **BY_CHANCE)
@given(conversations(OURS), STATUSES)
async def test_conversations_by_chance_come_to_the_same(no_leaks: object, steps: list[Step], status: int) -> None:
    await both(steps, status=status)


@pytest.mark.soak
@settings(max_examples=3_000, **BY_CHANCE)
@given(conversations(OURS), STATUSES)
async def test_many_conversations_by_chance_come_to_the_same(no_leaks: object, steps: list[Step], status: int) -> None:
    await both(steps, status=status)


@settings(max_examples=30, derandomize=True, phases=[Phase.generate], **BY_CHANCE)
@given(conversations((*OURS, *OPERATIONS)), STATUSES)
async def test_conversations_with_foreign_operations_come_to_the_same(no_leaks: object, steps: list[Step], status: int) -> None:
    await both(steps, status=status)
