"""The engines against each other, as requestors: what a peer may answer, right and wrong, means the same to both."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import pytest
from pydicom.dataset import Dataset

from asyncdicom.association.query import encode_dataset
from asyncdicom.modality import Engine
from asyncdicom.testing import Wire
from asyncdicom.upper_layer import context as uid
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.message import CommandField, Message
from asyncdicom.upper_layer.negotiation import AssociateAccept, AssociateRequest, ContextResult, ExtendedNegotiation, Role
from tests.association.differential import (
    CONTEXTS,
    CT,
    ECHO,
    ENGINES,
    FILM_SESSION,
    OPERATIONS,
    PATIENT,
    SHORT,
    Ask,
    Peer,
    accepting,
    acknowledge,
    answering,
    both,
    converse,
    each,
    echo,
    nothing,
    saying,
)
from tests.differences import allow
from tests.malformed import resized, without
from tests.mutation import values

# pynetdicom hands UIDs that are none to pydicom, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# -- acceptances ------------------------------------------------------------------------------------------------------

EditAccept = Callable[[AssociateAccept], AssociateAccept]


def but(**fields: Any) -> EditAccept:
    """The acceptance with other fields."""
    return lambda accept: dataclasses.replace(accept, **fields)


def also(*results: ContextResult) -> EditAccept:
    """The acceptance with further contexts."""
    return lambda accept: dataclasses.replace(accept, contexts=(*accept.contexts, *results))


ACCEPTANCES: dict[str, Any] = {
    "as proposed": but(),
    "no answer to a context": but(contexts=()),
    "rejected": but(contexts=(ContextResult(1, 1, uid.IMPLICIT_VR_LITTLE_ENDIAN),)),
    "rejected for no known reason": but(contexts=(ContextResult(1, 5, uid.IMPLICIT_VR_LITTLE_ENDIAN),)),
    "foreign syntax": but(contexts=(ContextResult(1, 0, "1.2.840.10008.1.2.4.50"),)),
    "no syntax": but(contexts=(ContextResult(1, 0, ""),)),
    "foreign context": but(contexts=(ContextResult(99, 0, uid.IMPLICIT_VR_LITTLE_ENDIAN),)),
    "a foreign context too": also(ContextResult(99, 0, uid.IMPLICIT_VR_LITTLE_ENDIAN)),
    "a foreign context rejected": also(ContextResult(99, 3, uid.IMPLICIT_VR_LITTLE_ENDIAN)),
    "a context twice": also(ContextResult(1, 0, uid.EXPLICIT_VR_LITTLE_ENDIAN)),
    "other titles": but(called_ae_title="OTHER", calling_ae_title="ELSE"),
    "long class": but(implementation_class_uid="1.2." + "3" * 61),
    "no UID for a class": but(implementation_class_uid="abc"),
    "empty class": but(implementation_class_uid=""),
    "no version": but(implementation_version=None),
    "long version": but(implementation_version="x" * 17),
    "foreign letters": but(implementation_version="caf\xe9"),
    "padded version": but(implementation_version=" V1 "),
    "application context": but(application_context="1.2.3"),
    "no application context": but(application_context=""),
    "protocol version 0": but(protocol_version=0),
    "protocol version 3": but(protocol_version=3),
    "asynchronous operations": but(asynchronous_operations=(5, 5)),
    "a role nobody asked for": but(roles=(Role(uid.VERIFICATION, False, True),)),
    "an extension nobody asked for": but(extended=(ExtendedNegotiation(uid.VERIFICATION, b"\1\2"),)),
    "an identity nobody gave": but(user_identity_response=b"hello"),
    "unknown user information": but(other_items=((0x5F, b"x"),)),
    **{f"maximum length {length}": but(max_length=length) for length in (0, 1, 7, 8, 4_095, 0xFFFFFFFF)},
}


@pytest.mark.parametrize("edit", ACCEPTANCES.values(), ids=ACCEPTANCES)
async def test_an_acceptance_means_the_same(no_leaks: object, edit: EditAccept) -> None:
    await both(accepting(edit, then=acknowledge), echo, contexts=ECHO)


ENCODED: dict[str, Any] = {
    "cut by a byte": lambda encoded: resized(encoded[:-1]),
    "cut by five bytes": lambda encoded: resized(encoded[:-5]),
    "a stray byte": lambda encoded: resized(encoded + b"\x99"),
    "an unknown item": lambda encoded: resized(encoded + b"\x99\0\0\2ab"),
    "no user information": without(b"\x50\0"),
    "user information twice": lambda encoded: resized(encoded + encoded[encoded.index(b"\x50\0\0", 74) :]),
    "no application context item": without(b"\x10\0"),
    "even context": lambda encoded: encoded.replace(b"\x21\0\0\x19\x01", b"\x21\0\0\x19\x02"),
    "reserved bytes": lambda encoded: encoded[:1] + b"\7" + encoded[2:8] + b"\7\7" + bytes(32) + b"\7" * 32 + encoded[74:],
    "nothing in it": lambda encoded: resized(encoded[:6]),
    "half of the fixed fields": lambda encoded: resized(encoded[:38]),
}


@pytest.mark.parametrize("encoded", ENCODED.values(), ids=ENCODED)
async def test_the_bytes_of_an_acceptance_mean_the_same(no_leaks: object, encoded: Callable[[bytes], bytes]) -> None:
    await both(accepting(encoded=encoded, then=acknowledge), echo, contexts=ECHO)


OUT_OF_TURN = {
    "A-RELEASE-RP": pdu.encode_release_rp(),
    "A-RELEASE-RQ": pdu.encode_release_rq(),
    "P-DATA-TF": values((1, 3, b"ab")),
    "A-ASSOCIATE-RQ": negotiation.encode_request(AssociateRequest("A", "B", ())),
}
MALFORMED = {
    "unknown PDU": b"\x09\0\0\0\0\0",
    "short A-ASSOCIATE-RJ": pdu.encode_pdu(3, b"\0\1"),
    "long A-ASSOCIATE-RJ": pdu.encode_pdu(3, bytes(9)),
    "short A-ABORT": pdu.encode_pdu(7, b"\0\1"),
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("close", [False, True], ids=["stays", "closes"])
@pytest.mark.parametrize("said", [*OUT_OF_TURN.values(), *MALFORMED.values()], ids=[*OUT_OF_TURN, *MALFORMED])
async def test_what_is_no_answer_to_a_request_for_association_means_the_same(
    no_leaks: object, said: bytes, close: bool
) -> None:
    await both(saying(said, close=close), nothing, contexts=ECHO)


@pytest.mark.parametrize("said", [b"", b"\2", b"\2\0\0\0"], ids=["nothing", "a byte", "half a header"])
async def test_a_peer_that_closes_before_its_answer_means_the_same(no_leaks: object, said: bytes) -> None:
    await both(saying(said, close=True), nothing, contexts=ECHO)


# -- responses --------------------------------------------------------------------------------------------------------

Reply = Callable[[Message], bytes]
MATCH = Dataset()
MATCH.PatientID = "1"
ENCODED_MATCH = encode_dataset(MATCH, uid.EXPLICIT_VR_LITTLE_ENDIAN)
STATUS = b"\0\0\0\x09\2\0\0\0\0\0"
NO_DATASET = b"\0\0\0\x08\2\0\0\0\1\1"


def response(status: int = 0x0000, dataset: bytes | None = None, context_id: int | None = None, **elements: Any) -> Reply:
    """A response."""

    def reply(asked: Message) -> bytes:
        command = dimse.response(asked.command, status, dataset=dataset is not None)
        command.update(elements)
        return whole(asked.context_id if context_id is None else context_id, dimse.encode_command(command), dataset)

    return reply


def whole(context_id: int, command: bytes, dataset: bytes | None = None) -> bytes:
    """A message."""
    return pdu.encode_message(context_id, command, dataset, max_length=16_384)


def lacking(keyword: str) -> Reply:
    """A response without an element."""

    def reply(asked: Message) -> bytes:
        command = dimse.response(asked.command, 0x0000)
        del command[keyword]
        return whole(asked.context_id, dimse.encode_command(command))

    return reply


def edited(edit: Callable[[bytes], bytes], tail: bytes = b"") -> Reply:
    """A response whose command set is changed as bytes."""
    return lambda asked: whole(asked.context_id, edit(dimse.encode_command(dimse.response(asked.command, 0x0000)))) + tail


def fragments(cut: Callable[[int, bytes], bytes]) -> Reply:
    """A response in fragments of ours."""
    return lambda asked: cut(asked.context_id, dimse.encode_command(dimse.response(asked.command, 0x0000)))


def then(*parts: Reply | bytes) -> Reply:
    """One after the other."""
    return lambda asked: b"".join(part if isinstance(part, bytes) else part(asked) for part in parts)


def request(context_id: int, field: CommandField, sop_class: str, dataset: bytes | None = None, **elements: Any) -> bytes:
    """A request that the peer makes."""
    command = dimse.request(field, 7, sop_class, dataset=dataset is not None, **elements)
    return whole(context_id, dimse.encode_command(command), dataset)


REPLIES: dict[str, Any] = {
    "success": response(),
    "warning": response(0xB000),
    "warning of no class": response(0x0001),
    "cancel": response(0xFE00),
    "failure": response(0xA700, ErrorComment="out of resources", OffendingElement=(0x00100010,), ErrorID=5),
    "unknown status": response(0x1234),
    "pending": then(response(0xFF00), response()),
    "pending with a dataset": then(response(0xFF01, ENCODED_MATCH), response()),
    "pending with garbage": then(response(0xFF00, b"\xff" * 20), response()),
    "dataset": response(0x0000, ENCODED_MATCH),
    "garbage for a dataset": response(0x0000, b"\xff" * 20),
    "other context": response(context_id=3),
    "unaccepted context": response(context_id=99),
    "no status": lacking("Status"),
    "no message responded to": lacking("MessageIDBeingRespondedTo"),
    "no class": lacking("AffectedSOPClassUID"),
    "other class": response(AffectedSOPClassUID="1.2.3.4"),
    "no UID for a class": response(AffectedSOPClassUID="abc"),
    "long class": response(AffectedSOPClassUID="1.2." + "3" * 61),
    "a message ID too": response(MessageID=5),
    "the field of a request": lambda asked: response(CommandField=asked.command.field)(asked),
    "unknown field": response(CommandField=0x8999),
    "long comment": response(ErrorComment="x" * 100),
    "foreign letters in a comment": response(ErrorComment="caf\xe9"),
    "no dataset type": edited(lambda command: command.replace(NO_DATASET, b"")),
    "a dataset announced and empty": response(0x0000, b""),
    "a dataset that nobody announced": then(response(), values((1, 2, b"ab"))),
    "wrong group length": edited(lambda command: command[:8] + b"\5\0\0\0" + command[12:]),
    "no group length": edited(lambda command: command[12:]),
    "unknown element": edited(lambda command: command + b"\0\0\x55\x55\2\0\0\0ab"),
    "other group": edited(lambda command: command + b"\x08\0\x18\0\2\0\0\x001\0"),
    "private group": edited(lambda command: command + b"\x09\0\x18\0\2\0\0\x001\0"),
    "unordered": edited(lambda command: command[:12] + STATUS + command[12:].replace(STATUS, b"")),
    "status twice": edited(lambda command: command.replace(STATUS, STATUS + STATUS[:-2] + b"\0\xa7")),
    "long status": edited(lambda command: command.replace(STATUS, b"\0\0\0\x09\4\0\0\0\0\0\0\0")),
    "empty status": edited(lambda command: command.replace(STATUS, b"\0\0\0\x09\0\0\0\0")),
    "explicit VR": edited(lambda command: b"\0\0\0\0UL\4\0\0\0\0\0"),
    "cut command": edited(lambda command: command[:-1]),
    "command in two values": fragments(lambda context, command: values((context, 1, command[:11]), (context, 3, command[11:]))),
    "command in two PDUs": fragments(
        lambda context, command: (
            values((context, 1, command[:11])) + values((context, 1, b"")) + values((context, 3, command[11:]))
        )
    ),
    "reserved control bits": fragments(lambda context, command: values((context, 0xF3, command))),
    "empty command": fragments(lambda context, command: values((context, 3, b""))),
    "dataset first": fragments(lambda context, command: values((context, 2, b"ab"))),
    "interleaved": fragments(lambda context, command: values((1, 1, command), (3, 3, command))),
    "even context": fragments(lambda context, command: values((2, 3, command))),
    "context 0": fragments(lambda context, command: values((0, 3, command))),
    "value without a length": then(pdu.encode_pdu(4, struct.pack(">I", 0))),
    "value of a byte": then(pdu.encode_pdu(4, struct.pack(">IB", 1, 1))),
    "value that is too long": then(pdu.encode_pdu(4, struct.pack(">IBB", 99, 1, 3) + b"ab")),
    "stray bytes after a value": lambda asked: resized(response()(asked) + b"abc"),
    "reserved byte": lambda asked: response()(asked)[:1] + b"\7" + response()(asked)[2:],
    "longer than announced": lambda asked: values((asked.context_id, 0, bytes(140_000))),
    "success twice": then(response(), response()),
    "success and abort": then(response(), pdu.encode_abort()),
    "success and release": then(response(), pdu.encode_release_rq()),
    "release": then(pdu.encode_release_rq()),
    "part of a response, release": lambda asked: response(0xFF00, ENCODED_MATCH)(asked)[:-20] + pdu.encode_release_rq(),
    "second acceptance": then(negotiation.encode_accept(AssociateAccept("A", "B", ()))),
    "rejection": then(pdu.encode_reject(1, 1, 1)),
    "long release": then(pdu.encode_pdu(5, bytes(10))),
    "an echo of the peer's": then(request(1, CommandField.C_ECHO_RQ, uid.VERIFICATION), response()),
    "an instance of the peer's": then(
        request(9, CommandField.C_STORE_RQ, CT, b"\0\0", AffectedSOPInstanceUID="1.2.3"), response()
    ),
    "an event of the peer's": then(
        request(11, CommandField.N_EVENT_REPORT_RQ, FILM_SESSION, AffectedSOPInstanceUID="1.2.3", EventTypeID=1), response()
    ),
    "a cancel of the peer's": then(lambda asked: whole(asked.context_id, dimse.encode_command(dimse.cancel(7))), response()),
    **{name: then(said) for name, said in {**OUT_OF_TURN, **MALFORMED}.items() if name not in ("A-RELEASE-RQ", "P-DATA-TF")},
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
async def test_an_answer_means_the_same_in_every_operation(no_leaks: object, reply: Reply) -> None:
    await each(answering(reply), OPERATIONS, contexts=CONTEXTS)


INCOMPLETE: dict[str, Any] = {
    "a dataset announced and not sent": edited(lambda command: command.replace(NO_DATASET, NO_DATASET[:-2] + b"\0\0")),
    "half a command": fragments(lambda context, command: values((context, 1, command[:10]))),
    "half a PDU": lambda asked: response()(asked)[:20],
    "no value": then(pdu.encode_pdu(4, b"")),
}


@pytest.mark.parametrize("reply", INCOMPLETE.values(), ids=INCOMPLETE)
async def test_an_answer_that_is_not_whole_is_waited_for_the_same(no_leaks: object, reply: Reply) -> None:
    timeouts = dataclasses.replace(PATIENT, operation=SHORT, move=SHORT)
    await each(answering(reply), OPERATIONS, contexts=CONTEXTS, timeouts=timeouts)


# -- how we abort -----------------------------------------------------------------------------------------------------


async def deaf(wire: Wire) -> None:
    """Take everything, and answer nothing."""
    await wire.closed()


async def once(wire: Wire) -> None:
    """Answer one request, and nothing after it."""
    await wire.send(response()(await wire.receive_message()))
    await deaf(wire)


# Who aborts, and why, as PS3.8 Table 9-26 lets us say it: 0 is the user, 2 the provider; 0 gives no reason, 1 is an
# unrecognized PDU, 2 an unexpected one, 4 to 6 speak of its parameters.
USER = {(0, 0)}
UNRECOGNIZED = {(2, 0), (2, 1)}
UNEXPECTED = {(2, 0), (2, 2)}
MALFORMED_PDU = {(2, 0), (2, 1), (2, 4), (2, 5), (2, 6)}
# What is no DIMSE message came in good PDUs; the user may abort, or leave it to the provider without a reason.
MALFORMED_MESSAGE = {(0, 0), (2, 0)}


# Where the peer is waited for in vain.
WAITS = {
    "no answer to the request": "associate",
    "half an acceptance": "associate",
    "no answer": "operation",
    "half a PDU": "operation",
    "no answer to a release": "release",
}
ABORTS: dict[str, tuple[Peer, Ask, set[tuple[int, int]]]] = {
    "no answer to the request": (saying(b""), nothing, USER),
    "half an acceptance": (
        accepting(encoded=lambda encoded: encoded[:50]),
        nothing,
        USER,
    ),
    "no context": (accepting(but(contexts=())), nothing, USER),
    "nothing fits in": (accepting(but(max_length=7)), nothing, USER),
    "what was not proposed": (accepting(ACCEPTANCES["foreign syntax"]), nothing, USER),
    "cut acceptance": (
        accepting(encoded=ENCODED["cut by a byte"]),
        nothing,
        MALFORMED_PDU,
    ),
    "unknown PDU for an acceptance": (saying(MALFORMED["unknown PDU"]), nothing, UNRECOGNIZED),
    "P-DATA-TF for an acceptance": (saying(OUT_OF_TURN["P-DATA-TF"]), nothing, UNEXPECTED),
    "short reject": (saying(MALFORMED["short A-ASSOCIATE-RJ"]), nothing, MALFORMED_PDU),
    "no answer": (accepting(then=deaf), echo, USER),
    "half a PDU": (answering(INCOMPLETE["half a PDU"]), echo, USER),
    "answer to another": (answering(response(MessageIDBeingRespondedTo=0)), echo, USER),
    "unknown field": (answering(REPLIES["unknown field"]), echo, MALFORMED_MESSAGE),
    "cut command": (answering(edited(lambda command: command[:-3])), echo, MALFORMED_MESSAGE),
    "dataset first": (answering(REPLIES["dataset first"]), echo, MALFORMED_MESSAGE),
    "garbage": (answering(then(MALFORMED["garbage"])), echo, UNRECOGNIZED),
    "second acceptance": (answering(REPLIES["second acceptance"]), echo, UNEXPECTED),
    "long release": (answering(REPLIES["long release"]), echo, MALFORMED_PDU),
    "longer than announced": (answering(REPLIES["longer than announced"]), echo, MALFORMED_PDU),
    "value of a byte": (answering(REPLIES["value of a byte"]), echo, MALFORMED_PDU),
    "even context": (
        answering(REPLIES["even context"]),
        echo,
        MALFORMED_PDU,
    ),
    "no answer to a release": (accepting(then=once), echo, USER),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ABORTS)
async def test_an_abort_says_who_aborts_and_why(no_leaks: object, name: str, engine: Engine) -> None:
    peer, ask, allowed = ABORTS[name]
    timeouts = dataclasses.replace(PATIENT, **{WAITS[name]: SHORT}) if name in WAITS else PATIENT
    told = await converse(engine, peer, ask, contexts=ECHO, timeouts=timeouts)
    allow("sources and reasons", tuple(told.aborts), {(abort,) for abort in allowed})
