"""The engines against each other, as requestors: the same conversations come to the same, and look the same on the wire.

What a peer may say in answer, right and wrong, is in ``test_differential_answers``.
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from asyncdicom import Association, DatasetError, PresentationContext, Query, UserIdentity, associate, contexts_for_get
from asyncdicom.association import dialogue
from asyncdicom.modality import Engine, Limits
from asyncdicom.testing import Behaviour, Fault, SimulatedModality, Wire
from asyncdicom.upper_layer import context as uid
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.negotiation import AssociateAccept, Role
from asyncdicom.upper_layer.pdu import PDUType, fragment_length
from tests.association.differential import (
    CONTEXTS,
    CT,
    ECHO,
    ENGINES,
    FILM_SESSION,
    HELD,
    INSTANCE_UID,
    OPERATIONS,
    PATIENT,
    SHORT,
    accepting,
    acknowledge,
    both,
    converse,
    counters,
    each,
    echo,
    find,
    instance,
    nothing,
    saying,
)

# Files are written and read in the tests themselves.
pytestmark = pytest.mark.blocking

SYNTAXES = (*uid.UNCOMPRESSED, uid.EXPLICIT_VR_BIG_ENDIAN, uid.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
LONG_UID = "1.2." + "3" * 61


# -- faults -----------------------------------------------------------------------------------------------------------

# Nothing comes of these, and the one who waits gives up.
_SILENT = {
    Fault.SILENT: "associate",
    Fault.STALLING: "associate",
    Fault.SILENT_AFTER_ASSOCIATE: "operation",
    Fault.STALLING_OPERATION: "operation",
    Fault.NO_RELEASE: "release",
}
# They show before there are any bytes, in TLS, or have their own test.
_ELSEWHERE = (Fault.REFUSING, Fault.BLACK_HOLE, Fault.TLS, Fault.SILENT_TLS, Fault.ENDLESS_PENDING)


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in _ELSEWHERE])
async def test_a_fault_of_a_peer_means_the_same_in_every_operation(no_leaks: object, fault: Fault) -> None:
    def peer() -> SimulatedModality:
        behaviour = Behaviour(fault, delay=0.05 if fault is Fault.SLOW else 0.0)
        return SimulatedModality(behaviour, matches=[{"PatientID": "1"}], instances=[HELD])

    timeouts = PATIENT
    if fault in _SILENT:
        timeouts = dataclasses.replace(PATIENT, **{_SILENT[fault]: SHORT})
        if _SILENT[fault] == "operation":
            timeouts = dataclasses.replace(timeouts, move=SHORT)
    await each(peer, OPERATIONS, contexts=CONTEXTS, remembered=counters, timeouts=timeouts)


@pytest.mark.parametrize("honour", [True, False], ids=["cancelled", "deaf"])
async def test_what_has_no_end_is_stopped_in_the_same_way(
    no_leaks: object, monkeypatch: pytest.MonkeyPatch, honour: bool
) -> None:
    monkeypatch.setattr(dialogue, "CANCEL_GRACE", 5.0 if honour else SHORT)

    async def find_three(association: Association, came: list[Any]) -> None:
        await find(association, came, limit=3)
        # One that has been stopped leaves the association to the next; one that was deaf has ended it.
        if association.is_established:
            await echo(association, came)

    async def move_until_bored(association: Association, came: list[Any]) -> None:
        responses = association.move(Query(), to="DEST")
        came += [await anext(responses), await anext(responses)]
        await responses.aclose()
        came.append(association.is_established)

    async def find_and_leave(association: Association, came: list[Any]) -> None:
        came.append((await anext(association.find(Query()))).status)

    def peer() -> SimulatedModality:
        return SimulatedModality(
            Behaviour(Fault.ENDLESS_PENDING, interval=0.001, honour_cancel=honour), matches=[{"PatientID": "1"}]
        )

    asks = {"find": find_three, "move": move_until_bored, "leave": find_and_leave}
    await each(peer, asks, contexts=CONTEXTS, remembered=counters)


# -- instances --------------------------------------------------------------------------------------------------------


def sizes(max_length: int) -> list[int]:
    """Sizes of datasets around the borders of fragments, odd ones among them."""
    whole = fragment_length(max_length)
    return sorted({1, 2, 3, whole - 1, whole, whole + 1, whole + 2, 2 * whole - 1, 2 * whole, 2 * whole + 1, 3 * whole} - {0})


@pytest.mark.parametrize("held", ["data", "path"])
@pytest.mark.parametrize("max_length", [8, 9, 4_095, 4_096, 16_384, 131_072, 0])
async def test_instances_of_every_size_arrive_the_same(no_leaks: object, tmp_path: Path, max_length: int, held: str) -> None:
    datasets = [bytes(number % 251 for number in range(size)) for size in sizes(max_length)]
    what = []
    for size, data in zip(sizes(max_length), datasets, strict=True):
        one = instance(data, sop_instance_uid=f"1.2.{size}")
        if held == "path":
            path = tmp_path / str(size)
            path.write_bytes(b"before" + data)
            one = dataclasses.replace(one, data=None, path=path, offset=6)
        what.append(one)

    async def store_all(association: Association, came: list[Any]) -> None:
        came.extend([await association.store(one) for one in what])

    def announce(accept: AssociateAccept) -> AssociateAccept:
        return dataclasses.replace(accept, max_length=max_length)

    for conversation in await both(accepting(announce, then=acknowledge), store_all, contexts=CONTEXTS):
        assert [words[3] for words in conversation.said if words[0] == "message"] == datasets
        if max_length:
            assert max(conversation.spoken.lengths) <= max_length
        # Some peers decode fragments as they come, and refuse odd ones before the last.
        assert all(is_last or size % 2 == 0 for size, is_last in conversation.spoken.fragments)


@pytest.mark.parametrize("syntax", [*SYNTAXES, JPEG_BASELINE, "1.2.826.0.1.3680043.9.9999.2"])
async def test_instances_in_every_transfer_syntax_arrive_the_same(no_leaks: object, syntax: str) -> None:
    one = instance(b"\xfe\xff\x00\xe0odd", transfer_syntax_uid=syntax)

    async def store_twice(association: Association, came: list[Any]) -> None:
        came.append(await association.store(one))
        came.append(await association.store(one, move_originator_ae_title="MOVER", move_originator_message_id=7))

    await both(SimulatedModality, store_twice, contexts=[one.context], remembered=counters)


async def test_a_dataset_of_pydicom_is_sent_the_same(no_leaks: object) -> None:
    dataset = Dataset.from_json({"00080016": {"vr": "UI", "Value": [CT]}, "00080018": {"vr": "UI", "Value": [INSTANCE_UID]}})
    dataset.PatientID = "odd"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(HELD.transfer_syntax_uid)

    async def store(association: Association, came: list[Any]) -> None:
        came.append(await association.store(dataset))

    await both(SimulatedModality, store, contexts=CONTEXTS, remembered=counters)


async def test_an_instance_without_a_byte_arrives_the_same(no_leaks: object) -> None:
    async def store(association: Association, came: list[Any]) -> None:
        came.append(await association.store(instance(b"")))

    timeouts = dataclasses.replace(PATIENT, operation=SHORT)
    await both(SimulatedModality, store, contexts=CONTEXTS, remembered=counters, timeouts=timeouts)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns of UIDs that are none
@pytest.mark.parametrize(
    "sop_instance_uid",
    ["1.2.3", "1.2." + "3" * 60, "1.2.03", "1.2.3 "],
)
async def test_the_uid_of_an_instance_is_sent_the_same(no_leaks: object, sop_instance_uid: str) -> None:
    async def store(association: Association, came: list[Any]) -> None:
        came.append(await association.store(instance(b"ab", sop_instance_uid=sop_instance_uid)))

    await both(SimulatedModality, store, contexts=CONTEXTS)


@pytest.mark.parametrize("sop_instance_uid", ["", LONG_UID], ids=["none", "long"])
async def test_what_is_no_uid_is_not_sent(no_leaks: object, sop_instance_uid: str) -> None:
    async def store(association: Association, came: list[Any]) -> None:
        with pytest.raises(DatasetError):
            await association.store(instance(b"ab", sop_instance_uid=sop_instance_uid))
        came.append(await association.store(instance(b"ab")))

    native, _ = await both(SimulatedModality, store, contexts=CONTEXTS, remembered=counters)
    assert [words[0] for words in native.said].count("message") == 1


async def test_an_instance_whose_file_is_gone_is_an_error_of_the_same_kind(no_leaks: object, tmp_path: Path) -> None:
    gone = dataclasses.replace(instance(b"ab"), data=None, path=tmp_path / "gone")

    async def store(association: Association, came: list[Any]) -> None:
        came.append(await association.store(gone))

    # Half a message may be on its way by then, so what was said is not compared.
    for engine in ENGINES:
        told = await converse(engine, SimulatedModality, store, contexts=CONTEXTS)
        assert told.came[1:] == ["DatasetError"]
        assert told.aborts == [(0, 0)]


# -- queries and DIMSE-N ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES)
async def test_queries_and_matches_are_the_same_in_every_transfer_syntax(no_leaks: object, syntax: str) -> None:
    queries = {
        "study": Query(keys={"PatientName": "Dö*", "StudyDate": "20260101-"}),
        "image": Query("image", {"StudyInstanceUID": "1.2", "SOPInstanceUID": ["1.3", "1.4"]}, model="patient"),
        "worklist": Query(model="worklist", keys={"PatientID": "", "Modality": "CT"}),
    }
    contexts = [PresentationContext(query.find_sop_class, (syntax,)) for query in queries.values()]
    asks = {name: partial(find, query=query) for name, query in queries.items()}
    await each(lambda: SimulatedModality(matches=[{"PatientID": "odd"}, {"PatientName": "Ä"}]), asks, contexts=contexts)


@pytest.mark.parametrize("syntax", SYNTAXES)
async def test_every_normalized_service_is_asked_the_same(no_leaks: object, syntax: str) -> None:
    given = Dataset()
    given.SpecificCharacterSet, given.NumberOfCopies, given.FilmSessionLabel = "ISO_IR 192", "2", "Dö"

    async def ask(association: Association, came: list[Any]) -> None:
        came += [
            await association.n_get([], FILM_SESSION, INSTANCE_UID),
            await association.n_get([0x20000010, 0x00100010], FILM_SESSION, INSTANCE_UID),
            await association.n_set(given, FILM_SESSION, INSTANCE_UID),
            await association.n_create(given, FILM_SESSION, INSTANCE_UID),
            await association.n_create(None, FILM_SESSION),
            await association.n_action(1, FILM_SESSION, INSTANCE_UID, given),
            await association.n_action(65_535, FILM_SESSION, INSTANCE_UID),
            await association.n_event_report(0, FILM_SESSION, INSTANCE_UID, given),
            await association.n_event_report(7, FILM_SESSION, INSTANCE_UID),
            await association.n_delete(FILM_SESSION, INSTANCE_UID),
            await association.echo(),
        ]

    contexts = [*ECHO, PresentationContext(FILM_SESSION, (syntax,))]
    native, _ = await both(SimulatedModality, ask, contexts=contexts, remembered=counters)
    assert len(native.came) == 12


async def test_a_normalized_service_is_given_an_empty_dataset_the_same(no_leaks: object) -> None:
    async def ask(association: Association, came: list[Any]) -> None:
        came.append(await association.n_set(Dataset(), FILM_SESSION, INSTANCE_UID))

    await both(SimulatedModality, ask, contexts=CONTEXTS, timeouts=dataclasses.replace(PATIENT, operation=SHORT))


# -- negotiation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scu", "scp"), [*itertools.product((None, False, True), repeat=2)])
async def test_roles_are_proposed_and_agreed_on_the_same(no_leaks: object, scu: bool | None, scp: bool | None) -> None:
    contexts = [PresentationContext(CT, scu_role=scu, scp_role=scp)]
    answers = [(), *((Role(CT, *roles),) for roles in itertools.product((False, True), repeat=2))]
    for roles in answers:

        def answer(accept: AssociateAccept, roles: tuple[Role, ...] = roles) -> AssociateAccept:
            return dataclasses.replace(accept, roles=roles)

        await both(accepting(answer), nothing, contexts=contexts)


async def test_the_contexts_of_a_get_are_proposed_the_same(no_leaks: object) -> None:
    await both(accepting(), nothing, contexts=contexts_for_get(Query()))


async def test_a_role_is_proposed_once_for_a_class_in_two_contexts(no_leaks: object) -> None:
    contexts = [PresentationContext(CT, (syntax,), scu_role=True, scp_role=True) for syntax in uid.UNCOMPRESSED]
    await both(accepting(), nothing, contexts=contexts)


@pytest.mark.parametrize("response", [False, True])
@pytest.mark.parametrize("kind", ["username", "username+passcode", "kerberos", "saml", "jwt"])
async def test_every_user_identity_is_proposed_the_same(no_leaks: object, kind: Any, response: bool) -> None:
    secondary = b"odd" if kind == "username+passcode" else b""
    identity = UserIdentity(kind, b"\xff\0jane", secondary, response)
    for answer in (None, b"", b"ticket"):

        def accept(accepted: AssociateAccept, answer: bytes | None = answer) -> AssociateAccept:
            return dataclasses.replace(accepted, user_identity_response=answer)

        await both(accepting(accept), nothing, contexts=ECHO, user_identity=identity)


@pytest.mark.parametrize(
    "identity",
    [
        UserIdentity("username", b""),
        UserIdentity("saml", b"x" * 60_000),
        UserIdentity("username", b"jane", b"secret"),
        UserIdentity("username+passcode", b"jane"),
    ],
    ids=["no name", "large", "name with passcode", "no passcode"],
)
async def test_odd_user_identities_are_proposed_the_same(no_leaks: object, identity: UserIdentity) -> None:
    await both(accepting(), nothing, contexts=ECHO, user_identity=identity)


@pytest.mark.parametrize("answered", [True, False])
async def test_extended_negotiation_asks_the_same(no_leaks: object, answered: bool) -> None:
    def accept(accepted: AssociateAccept) -> AssociateAccept:
        return accepted if answered else dataclasses.replace(accepted, extended=())

    for relational, fuzzy, datetime, timezone in itertools.product((False, True), repeat=4):
        query = Query(keys={"PatientID": "1"}, relational=relational, fuzzy=fuzzy, datetime=datetime, timezone=timezone)
        await both(accepting(accept), nothing, contexts=[PresentationContext(query.find_sop_class)], query=query)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns of UIDs that are none
@pytest.mark.parametrize(
    "contexts",
    [
        [PresentationContext(f"1.2.3.{number}") for number in range(128)],
        [*ECHO, *ECHO],
        [PresentationContext("1.2." + "3" * 60, ("1.2.4",))],
        [PresentationContext("1.2.3", (uid.IMPLICIT_VR_LITTLE_ENDIAN,) * 2)],
    ],
    ids=["128", "twice", "private", "syntax twice"],
)
async def test_presentation_contexts_are_proposed_the_same(no_leaks: object, contexts: list[PresentationContext]) -> None:
    await both(accepting(), nothing, contexts=contexts)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "context", [PresentationContext(LONG_UID), PresentationContext(CT, (LONG_UID,))], ids=["class", "syntax"]
)
async def test_what_is_too_long_for_a_uid_is_not_proposed(
    no_leaks: object, context: PresentationContext, engine: Engine
) -> None:
    async with SimulatedModality() as sim:
        with pytest.raises(DatasetError):
            async with associate(sim.modality(), engine=engine, contexts=[*ECHO, context]):
                pass
    assert sim.associations == 0


@pytest.mark.parametrize("max_pdu", [4_096, 4_097, 4 << 20])
async def test_our_maximum_length_and_titles_are_announced_the_same(no_leaks: object, max_pdu: int) -> None:
    def peer() -> SimulatedModality:
        return SimulatedModality(ae_title="A B", matches=[{"PatientID": "1", "TextValue": "x" * max_pdu}])

    asks = {"echo": echo, "find": find}
    await each(peer, asks, limits=Limits(max_pdu=max_pdu), calling_ae_title="ABCDEFGHIJKLMNOP")


# -- rejections, aborts, releases -------------------------------------------------------------------------------------


async def test_every_rejection_is_reported_the_same(no_leaks: object) -> None:
    for rejection in itertools.product((0, 1, 2, 255), (0, 1, 3, 255), (0, 7, 255)):
        await both(saying(pdu.encode_reject(*rejection)), nothing, contexts=ECHO)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        *((0, reason) for reason in (0, 1, 6, 255)),
        *((2, reason) for reason in (0, 1, 2, 3, 4, 5, 6, 7, 255)),
        *((source, 0) for source in (1, 3, 255)),
    ],
)
async def test_every_abort_of_the_peer_is_reported_the_same(no_leaks: object, source: int, reason: int) -> None:
    abort = pdu.encode_abort(source, reason)
    await both(saying(abort), nothing, contexts=ECHO)

    async def abort_operation(wire: Wire) -> None:
        await wire.receive_message()
        await wire.send(abort)

    await each(accepting(then=abort_operation), {"echo": echo, "find": find}, contexts=CONTEXTS)


async def test_a_release_that_crosses_ours_is_answered_the_same(no_leaks: object) -> None:
    """PS3.8 section 7.2.2: the requestor answers first, then the acceptor."""
    order: list[str] = []

    async def collide(wire: Wire) -> None:
        for answer in (pdu.encode_release_rq(), pdu.encode_release_rp()):
            found = await wire.receive_pdu()
            assert found is not None
            order.append(found.name)
            await wire.send(answer)
        await wire.closed()

    await both(accepting(then=collide), nothing, contexts=ECHO)
    assert sorted(order) == ["A-RELEASE-RP"] * 2 + ["A-RELEASE-RQ"] * 2


async def test_a_release_of_the_peer_between_operations_is_noticed_the_same(no_leaks: object) -> None:
    async def leave(wire: Wire) -> None:
        found = await wire.receive_message()
        answer = dimse.encode_command(dimse.response(found.command, 0x0000))
        await wire.send(pdu.encode_message(found.context_id, answer, max_length=wire.max_length) + pdu.encode_release_rq())
        # The next request may be on its way by then.
        while (said := await wire.receive_pdu()) is not None and said.type == PDUType.DATA_TF:
            pass
        assert said is not None
        assert said.type == PDUType.RELEASE_RP

    async def echo_again(association: Association, came: list[Any]) -> None:
        await echo(association, came)
        while True:
            await association.echo()

    native, bridge = [await converse(engine, accepting(then=leave), echo_again, contexts=ECHO) for engine in ENGINES]
    assert native.came == bridge.came
    assert native.came[-1][0] == "connection_lost"


async def test_a_caller_that_gives_up_aborts_the_same(no_leaks: object) -> None:
    async def give_up(association: Association, came: list[Any]) -> None:
        await echo(association, came)
        raise ValueError

    for conversation in await both(SimulatedModality, give_up, contexts=ECHO, remembered=counters):
        assert conversation.aborts == [(0, 0)]
