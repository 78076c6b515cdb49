"""Every DIMSE-N service that pynetdicom has, with pynetdicom on the other end; user identity and extended negotiation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    BasicFilmSession,
    ModalityPerformedProcedureStep,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from asyncdicom import (
    AssociationRejected,
    Modality,
    NoPresentationContext,
    OperationTimeout,
    PresentationContext,
    Query,
    Timeouts,
    UserIdentity,
    associate,
)
from asyncdicom.testing import Fault, SimulatedModality

INSTANCE = "1.2.826.0.1.3680043.9.9999.1"
CLASSES = [BasicFilmSession, ModalityPerformedProcedureStep, StorageCommitmentPushModel, Verification]
CONTEXTS = [PresentationContext(str(uid)) for uid in CLASSES]

pytestmark = pytest.mark.blocking  # pynetdicom's server runs in threads of this process


class Server:
    """pynetdicom's own application entity, which remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.identity: tuple[int, bytes, bytes] | None = None
        self.application_information: dict[str, bytes] = {}
        ae = AE("NORMAL")
        for uid in [*CLASSES, StudyRootQueryRetrieveInformationModelFind]:
            ae.add_supported_context(uid)
        self._server = ae.start_server(
            ("127.0.0.1", 0),
            block=False,
            evt_handlers=[
                (evt.EVT_N_GET, lambda event: self._answer("get", event.attribute_identifiers)),
                (evt.EVT_N_SET, lambda event: self._answer("set", event.modification_list)),
                (evt.EVT_N_CREATE, lambda event: self._answer("create", event.attribute_list)),
                (evt.EVT_N_ACTION, lambda event: self._answer("action", event.action_type)),
                (evt.EVT_N_EVENT_REPORT, lambda event: self._answer("event", event.event_type)),
                (evt.EVT_N_DELETE, self._deleted),
                (evt.EVT_USER_ID, self._identify),
                (evt.EVT_SOP_EXTENDED, self._extended),
                (evt.EVT_C_FIND, lambda event: iter([])),
            ],
        )
        assert self._server is not None
        self.port = self._server.server_address[1]

    def _answer(self, what: str, detail: Any) -> tuple[int, Dataset]:
        self.asked.append((what, detail))
        answer = Dataset()
        answer.NumberOfCopies = "3"
        return 0x0000, answer

    def _deleted(self, event: Any) -> int:
        self.asked.append(("delete", event.request.RequestedSOPInstanceUID))
        return 0x0000

    def _identify(self, event: Any) -> tuple[bool, bytes | None]:
        self.identity = (event.user_id_type, event.primary_field, event.secondary_field)
        return event.primary_field != b"mallory", b"welcome"

    def _extended(self, event: Any) -> dict[str, bytes]:
        self.application_information = {str(uid): value for uid, value in event.app_info.items()}
        return dict(event.app_info)

    def close(self) -> None:
        assert self._server is not None
        self._server.shutdown()

    def modality(self, **fields: Any) -> Modality:
        return Modality("normal", "NORMAL", "127.0.0.1", self.port, **fields)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


async def test_every_normalized_service_is_asked_and_answered(server: Server) -> None:
    attributes = Dataset()
    attributes.NumberOfCopies = "2"
    async with associate(server.modality(), contexts=CONTEXTS, engine="pynetdicom") as association:
        status, answer = await association.n_get([0x20000010], str(BasicFilmSession), INSTANCE)
        assert status == 0x0000
        assert answer is not None
        assert answer.NumberOfCopies == 3
        status, answer = await association.n_set(attributes, str(BasicFilmSession), INSTANCE)
        assert (status, answer is not None) == (0x0000, True)
        assert (await association.n_create(attributes, str(BasicFilmSession), INSTANCE))[0] == 0x0000
        assert (await association.n_action(1, str(StorageCommitmentPushModel), INSTANCE, attributes))[0] == 0x0000
        assert await association.n_delete(str(BasicFilmSession), INSTANCE) == 0x0000
        # An echo in between: both kinds of service share the association.
        assert await association.echo() == 0x0000
        status, _ = await association.n_event_report(1, str(StorageCommitmentPushModel), INSTANCE, attributes)
        assert status == 0x0000
    assert [what for what, _ in server.asked] == ["get", "set", "create", "action", "delete", "event"]


async def test_a_normalized_service_without_its_context_says_so(server: Server) -> None:
    async with associate(server.modality(), engine="pynetdicom") as association:
        with pytest.raises(NoPresentationContext):
            await association.n_get([], str(BasicFilmSession), INSTANCE)
        assert await association.echo() == 0x0000


async def test_a_normalized_service_that_is_not_answered_times_out() -> None:
    timeouts = Timeouts(operation=0.5)
    async with SimulatedModality(Fault.SILENT_AFTER_ASSOCIATE) as sim:
        with pytest.raises(OperationTimeout):
            async with associate(sim.modality(timeouts=timeouts), contexts=CONTEXTS, engine="pynetdicom") as association:
                await association.n_get([], str(BasicFilmSession), INSTANCE)


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (UserIdentity("username", b"jane"), (1, b"jane")),
        (UserIdentity("username+passcode", b"jane", b"secret"), (2, b"jane")),
        (UserIdentity("kerberos", b"ticket", response=True), (3, b"ticket")),
        (UserIdentity("saml", b"<assertion/>"), (4, b"<assertion/>")),
        (UserIdentity("jwt", b"a.b.c", response=True), (5, b"a.b.c")),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
async def test_every_kind_of_user_identity_is_proposed(
    server: Server, identity: UserIdentity, expected: tuple[int, bytes]
) -> None:
    async with associate(server.modality(user_identity=identity), engine="pynetdicom") as association:
        assert await association.echo() == 0x0000
    assert server.identity is not None
    assert server.identity[:2] == expected
    assert b"secret" not in repr(identity).encode()


async def test_a_user_identity_that_is_not_believed_is_a_rejection(server: Server) -> None:
    modality = server.modality(user_identity=UserIdentity("username", b"mallory"))
    with pytest.raises(AssociationRejected):
        async with associate(modality, engine="pynetdicom"):
            raise AssertionError("rejected associations do not open")


async def test_extended_negotiation_asks_for_what_a_query_needs(server: Server) -> None:
    query = Query(keys={"PatientID": "1"}, relational=True, fuzzy=True)
    contexts = [PresentationContext(query.find_sop_class)]
    async with associate(server.modality(), contexts=contexts, query=query, engine="pynetdicom") as association:
        assert [match async for match in association.find(query)] == []
    assert server.application_information == {query.find_sop_class: b"\x01\x00\x01\x00"}
