"""The engines against each other, as storage SCPs: the same bytes get the same answers, and the same is kept of them.

Every known difference says who is right by PS3.7 and PS3.8.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncdicom import (
    Access,
    AllowRule,
    Archive,
    HashedPasscode,
    Identities,
    PresentationContext,
    StorageSCP,
    UserIdentity,
    Users,
)
from asyncdicom.modality import Engine
from asyncdicom.scp.access import OperationName
from asyncdicom.testing import Wire
from asyncdicom.upper_layer import context as uid
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.message import CommandField
from asyncdicom.upper_layer.negotiation import (
    AssociateAccept,
    AssociateRequest,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    ProposedContext,
    Role,
)
from tests.differences import allow
from tests.malformed import resized, without
from tests.mutation import values
from tests.scp.differential import (
    CONTEXTS,
    CT,
    ENGINES,
    HELD,
    INSTANCE_UID,
    RELEASE,
    Step,
    asking,
    both,
    converse,
    echo,
    ended,
    store,
)

# pynetdicom hands UIDs that are none to pydicom, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DATA = bytes(HELD.dataset)
PAIR = (uid.IMPLICIT_VR_LITTLE_ENDIAN, uid.EXPLICIT_VR_LITTLE_ENDIAN)
LONG_UID = "1.2." + "3" * 61
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"

# -- requests for association -----------------------------------------------------------------------------------------


REQUESTS: dict[str, Any] = {
    "plain": {},
    **{f"maximum length {length}": {"max_length": length} for length in (0, 7, 8, 4_095, 0xFFFFFFFF)},
    **{f"operations {window}": {"asynchronous_operations": window} for window in ((0, 0), (5, 7))},
    **{f"role {scu} {scp}": {"roles": (Role(CT, scu, scp),)} for scu, scp in itertools.product((False, True), repeat=2)},
    "role of nobody": {"roles": (Role("1.2.3", True, True),)},
    "extended": {"extended": (ExtendedNegotiation(CT, b"\2\1\3"),)},
    "common extended": {"common_extended": (CommonExtendedNegotiation(CT, "1.2.840.10008.4.2", ("1.2.3",)),)},
    "unknown user information": {"other_items": ((0x5F, b"x"), (0x60, b""), (0x01, b"abc"))},
    "no version": {"implementation_version": None},
    "long version": {"implementation_version": "x" * 17},
    "foreign letters": {"implementation_version": "caf\xe9"},
    "no UID for a class": {"implementation_class_uid": "abc"},
    "no class": {"implementation_class_uid": ""},
    "long class": {"implementation_class_uid": LONG_UID},
    "application context": {"application_context": "1.2.3"},
    "no application context": {"application_context": ""},
    "protocol version 0": {"protocol_version": 0},
    "protocol version 2": {"protocol_version": 2},
    "protocol version 3": {"protocol_version": 3},
    **{
        f"{kind} {response}": {"user_identity": UserIdentity(kind, b"jane", b"pw" if "+" in kind else b"", response)}
        for kind in ("username", "username+passcode", "kerberos", "saml", "jwt")
        for response in (False, True)
    },
}


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS)
async def test_a_request_for_association_is_answered_the_same(no_leaks: object, fields: dict[str, Any]) -> None:
    await both(ended(asking(**fields), echo(), store(2)))


JANE = Identities(Users({b"jane": HashedPasscode.make(b"pw")}), required=False)


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS)
async def test_a_request_for_association_is_answered_the_same_where_identities_are_verified(
    no_leaks: object, fields: dict[str, Any]
) -> None:
    await both(ended(asking(**fields), echo(), store(2)), identities=JANE)


ODD_IDENTITIES: dict[str, bytes] = {
    "type 0": b"\0\0\0\4jane\0\2pw",
    "type 6": b"\6\1\0\4jane\0\2pw",
    "a response of 255": b"\2\xff\0\4jane\0\2pw",
    "no name": b"\2\1\0\0\0\2pw",
    "no name and no passcode": b"\2\0\0\0\0\0",
    "a long name": b"\2\0\xea\x60" + b"j" * 60_000 + b"\0\2pw",
    "a long passcode": b"\2\0\0\4jane\xea\x60" + b"p" * 60_000,
    "no text": b"\2\0\0\4\xff\0\n\\\0\2\xff\xfe",
    "more than there is": b"\2\0\0\4jane\0\2pwand more",
    "a length that lies": b"\2\0\0\4jane\0\x09pw",
    "half of it": b"\2\0\0\4jane",
    "nothing": b"",
}


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("said", ODD_IDENTITIES.values(), ids=ODD_IDENTITIES)
async def test_odd_user_identities_are_answered_the_same(no_leaks: object, said: bytes, required: bool) -> None:
    identities = dataclasses.replace(JANE, required=required)
    await both(ended(asking(other_items=((0x58, said),)), echo()), identities=identities)


@pytest.mark.parametrize("operation", ["echo", "store", "commit"])
async def test_what_a_peer_may_not_do_is_refused_the_same(no_leaks: object, operation: OperationName) -> None:
    access = Access([AllowRule.parse("DIFF", operations=[operation])])
    await both(ended(asking(), echo(), store(2, 3)), access=access)
    await both(ended(asking(), store(1, 1), echo(2)), access=access)


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_window_of_one_operation_is_answered_or_left_out(no_leaks: object, engine: Engine) -> None:
    """1/1 is what holds without an answer, too (PS3.7 D.3.3.3.1)."""
    answered = await converse(engine, ended(asking(asynchronous_operations=(1, 1)), echo()))
    accept, *after = answered.spoken.said
    information = next(item for item in accept[-1] if item[0] == 0x50)
    allow("window", [item[2] for item in information[2:] if item[0] == 0x53], [[], [b"\0\1\0\1"]])
    assert [words[0] for words in after] == ["message", "A-RELEASE-RP"]


TITLES: dict[str, Any] = {
    "16 letters": "A" * 16,
    "inner space": "A B",
    "lower case": "abc",
    "blank": "",
    "foreign letters": "caf\xe9",
    "backslash": "A\\B",
    "control character": "A\x01B",
}


@pytest.mark.parametrize("which", ["called", "calling"])
@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES)
async def test_titles_are_answered_and_reported_the_same(no_leaks: object, title: str, which: str) -> None:
    called, calling = (title, "DIFF") if which == "called" else ("ANY-SCP", title)
    await both(ended(Step(negotiation.encode_request(AssociateRequest(called, calling, CONTEXTS))), store()))


@pytest.mark.parametrize("padding", [b"\0", b" "], ids=["NUL", "space"])
async def test_padded_titles_are_answered_and_reported_the_same(no_leaks: object, padding: bytes) -> None:
    padded = asking().said.replace(b"DIFF".ljust(16), padding + b"DIFF".ljust(15, padding))
    await both(ended(Step(padded), store()))


def context(*syntaxes: str, abstract: str = CT, number: int = 3) -> tuple[ProposedContext, ...]:
    """One proposed presentation context."""
    return (ProposedContext(number, abstract, syntaxes or PAIR[:1]),)


PROPOSALS: dict[str, Any] = {
    "implicit first": context(*PAIR),
    "compressed first": context(JPEG_BASELINE, *PAIR),
    "big endian": context(uid.EXPLICIT_VR_BIG_ENDIAN),
    "deflated": context(uid.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN),
    "syntax twice": context(PAIR[0], PAIR[0]),
    "class twice": (*context(PAIR[0], number=1), *context(PAIR[1])),
    "class twice in another order": (*context(JPEG_BASELINE, number=1), *context(PAIR[0], JPEG_BASELINE)),
    "class twice in one syntax": (*context(number=1), *context()),
    "private class": context(abstract="1.2.3.4"),
    "no class": context(abstract=""),
    "no UID for a class": context(abstract="abc"),
    "transfer syntax for a class": context(abstract=PAIR[0]),
    "query": context(abstract=uid.STUDY_ROOT_FIND),
    "commitment": context(abstract="1.2.840.10008.1.20.1"),
    "hanging protocol": context(abstract="1.2.840.10008.5.1.4.38.1"),
    "retired": context(abstract="1.2.840.10008.5.1.4.1.1.6"),
    "unordered": (*context(number=7), *context(abstract=uid.VERIFICATION, number=1)),
    "the last number": context(number=255),
    "compressed verification": context(JPEG_BASELINE, abstract=uid.VERIFICATION),
    "128": tuple(ProposedContext(2 * number + 1, f"1.2.3.{number}", PAIR) for number in range(128)),
    "even number": context(number=2),
    "number 0": context(number=0),
    "number twice": (*context(), *context(abstract=uid.VERIFICATION)),
    "no syntax": (ProposedContext(3, CT, ()),),
    "empty syntax": context(""),
    "long syntax": context(LONG_UID),
    "no syntax beside one": (*context(number=1), ProposedContext(3, CT, ())),
    "long syntax beside one": context(LONG_UID, PAIR[0]),
    "long class": context(abstract=LONG_UID),
}
FOREIGN_SYNTAXES: dict[str, Any] = {
    "private syntax": context("1.2.3.4"),
    "no UID for a syntax": context("abc"),
    "class for a syntax": context(CT),
    "private syntax for verification": context("1.2.3", abstract=uid.VERIFICATION),
}
LIMITED = [PresentationContext(CT, PAIR), PresentationContext(uid.VERIFICATION, PAIR[:1])]


@pytest.mark.parametrize("contexts", PROPOSALS.values(), ids=PROPOSALS)
async def test_proposed_contexts_are_answered_the_same(no_leaks: object, contexts: tuple[ProposedContext, ...]) -> None:
    request = Step(negotiation.encode_request(AssociateRequest("ANY-SCP", "DIFF", contexts)))
    for promiscuous in (True, False):
        await both(ended(request), promiscuous=promiscuous)
    await both(ended(request), contexts=LIMITED)


@pytest.mark.parametrize("contexts", FOREIGN_SYNTAXES.values(), ids=FOREIGN_SYNTAXES)
async def test_syntaxes_that_nobody_knows_are_taken_the_same(no_leaks: object, contexts: tuple[ProposedContext, ...]) -> None:
    await both(ended(asking(*contexts)))
    await both(ended(asking(*contexts)), contexts=LIMITED)


@pytest.mark.parametrize("contexts", FOREIGN_SYNTAXES.values(), ids=FOREIGN_SYNTAXES)
async def test_syntaxes_that_nobody_knows_are_rejected_the_same(
    no_leaks: object, contexts: tuple[ProposedContext, ...]
) -> None:
    await both(ended(asking(*contexts)), promiscuous=False)


async def test_the_transfer_syntax_is_chosen_the_same_from_contexts_of_ours(no_leaks: object) -> None:
    await both(ended(asking(*context(*reversed(PAIR)))), contexts=LIMITED)


REFUSALS: dict[str, dict[str, Any]] = {
    "calling title": {"access": Access((AllowRule.parse("CT1", ["127.0.0.0/8"]),))},
    "called title": {"require_called_ae_title": True},
    "limit": {"max_associations": 0},
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_an_association_is_rejected_the_same(no_leaks: object, refusal: dict[str, Any]) -> None:
    native, _ = await both([asking()], **refusal)
    assert native.spoken.names == ["A-ASSOCIATE-RJ"]


ENCODED: dict[str, Any] = {
    "cut by a byte": lambda encoded: resized(encoded[:-1]),
    "cut by five bytes": lambda encoded: resized(encoded[:-5]),
    "a stray byte": lambda encoded: resized(encoded + b"\x99"),
    "an unknown item": lambda encoded: resized(encoded + b"\x99\0\0\2ab"),
    "no user information": without(b"\x50\0"),
    "user information twice": lambda encoded: resized(encoded + encoded[encoded.index(b"\x50\0\0", 74) :]),
    "no application context": without(b"\x10\0"),
    "reserved bytes": lambda encoded: encoded[:1] + b"\7" + encoded[2:8] + b"\7\7" + encoded[10:42] + b"\7" * 32 + encoded[74:],
    "nothing in it": lambda encoded: resized(encoded[:6]),
    "half of the fixed fields": lambda encoded: resized(encoded[:38]),
    "fixed fields alone": lambda encoded: resized(encoded[:74]),
    "short maximum length": lambda encoded: resized(encoded.replace(b"\x51\0\0\4\0\2\0\0", b"\x51\0\0\2\0\2")),
}


@pytest.mark.parametrize("edit", ENCODED.values(), ids=ENCODED)
async def test_the_bytes_of_a_request_are_answered_the_same(no_leaks: object, edit: Callable[[bytes], bytes]) -> None:
    await both(ended(Step(edit(asking().said)), echo()))


OUT_OF_TURN = {
    "A-ASSOCIATE-AC": negotiation.encode_accept(AssociateAccept("A", "B", ())),
    "A-ASSOCIATE-RJ": pdu.encode_reject(1, 1, 1),
    "A-RELEASE-RP": pdu.encode_release_rp(),
}
MALFORMED = {
    "unknown PDU": b"\x08\0\0\0\0\4\0\0\0\0",
    "PDU type 0": b"\0\0\0\0\0\4\0\0\0\0",
    "garbage": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "lying length": b"\1\0\xff\xff\xff\xff",
    "short A-ABORT": pdu.encode_pdu(7, b"\0\1"),
    "long A-RELEASE-RQ": pdu.encode_pdu(5, bytes(10)),
}
FIRST = {**OUT_OF_TURN, **MALFORMED, "A-RELEASE-RQ": RELEASE, "P-DATA-TF": echo().said, "A-ABORT": pdu.encode_abort()}


@pytest.mark.parametrize("said", FIRST.values(), ids=FIRST)
async def test_what_is_no_request_for_association_is_answered_the_same(no_leaks: object, said: bytes) -> None:
    await both([Step(said)])


# -- instances --------------------------------------------------------------------------------------------------------


def fragmented(data: bytes, size: int, last: int = 1 << 30) -> Step:
    """A C-STORE in fragments of a certain size."""
    command = dimse.encode_command(
        dimse.request(CommandField.C_STORE_RQ, 1, CT, dataset=True, AffectedSOPInstanceUID=INSTANCE_UID)
    )
    said = b""
    for control, part in ((1, command), (0, data)):
        for at in range(0, len(part), size):
            said += values((3, control | 2 * (at + size >= len(part)), part[at : at + size]))
    return Step(said)


@pytest.mark.parametrize("max_pdu", [4_096, 4_097, 16_384])
async def test_instances_of_every_size_are_kept_the_same(no_leaks: object, max_pdu: int) -> None:
    whole_fragment = max_pdu - 6
    sizes = [1, 2, 3, whole_fragment - 1, whole_fragment, whole_fragment + 1, 2 * whole_fragment, 2 * whole_fragment + 1]
    steps = [fragmented(bytes(number % 251 for number in range(size)), whole_fragment) for size in sizes]
    native, _ = await both(ended(asking(), *steps), max_pdu=max_pdu)
    assert [len(kept[3]) for kept in native.kept] == sizes


@pytest.mark.parametrize("size", [1, 2, 7, 100])
async def test_fragments_of_every_size_are_put_together_the_same(no_leaks: object, size: int) -> None:
    native, _ = await both(ended(asking(), fragmented(DATA, size), echo(2)))
    assert native.kept[0][3] == DATA


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xA700, 0xC123, 0xFFFF])
async def test_the_status_of_the_handler_is_sent_the_same(no_leaks: object, status: int) -> None:
    await both(ended(asking(), store(), echo(2)), status=status)


async def test_requests_in_a_row_are_answered_the_same(no_leaks: object) -> None:
    said = b"".join(step.said for step in [*(store(number) for number in range(1, 6)), echo(6)]) + RELEASE
    native, _ = await both([asking(), Step(said, answers=7)])
    assert native.spoken.names == ["A-ASSOCIATE-AC", *["message"] * 6, "A-RELEASE-RP"]


@pytest.mark.parametrize("end", [pdu.encode_abort(), pdu.encode_abort(2, 2), RELEASE], ids=["user", "provider", "release"])
@pytest.mark.parametrize("inside", [False, True], ids=["between", "inside"])
async def test_what_was_acknowledged_before_the_end_is_kept_the_same(no_leaks: object, end: bytes, inside: bool) -> None:
    part = [Step(fragmented(DATA, 100).said[:-200], answers=0)] if inside else []
    await both([asking(), store(), *part, Step(end)])


@pytest.mark.blocking  # it reads the files itself
async def test_files_are_the_same_to_the_byte(no_leaks: object, tmp_path: Path) -> None:
    """Names, File Meta Information and datasets: a private class, every syntax, and what is no dataset."""
    private = "1.2.826.0.1.3680043.9.9999.3"
    syntaxes = (*PAIR, uid.EXPLICIT_VR_BIG_ENDIAN, JPEG_BASELINE, "1.2.3.4")
    contexts = [ProposedContext(2 * number + 1, CT, (syntax,)) for number, syntax in enumerate(syntaxes)]
    contexts.append(ProposedContext(2 * len(syntaxes) + 1, private, (PAIR[0],)))
    said = [
        store(number, 2 * number - 1, data, AffectedSOPInstanceUID=f"1.2.{number}")
        for number, data in enumerate((DATA, DATA, b"\xff" * 9, b"odd", DATA), 1)
    ]
    said.append(store(9, contexts[-1].context_id, DATA, private, AffectedSOPInstanceUID="1.2.9"))
    said.append(store(10, 1, MoveOriginatorApplicationEntityTitle="MOVER", MoveOriginatorMessageID=5))
    kept: dict[Engine, dict[str, bytes]] = {}
    for engine in ENGINES:
        folder = tmp_path / engine
        async with Archive(folder) as archive, StorageSCP(archive, port=0, engine=engine) as scp:
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                for step in [asking(*contexts), *said]:
                    await wire.send(step.said)
                    assert await wire.receive_pdu() is not None
                assert await wire.release()
        kept[engine] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.dcm")}
    assert kept["native"]
    assert kept["native"] == kept["pynetdicom"]
