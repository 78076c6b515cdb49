"""Requests for association and their acceptances, byte for byte against pynetdicom where it speaks."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom import build_context, pdu_primitives
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE

from asyncdicom.errors import ConfigurationError, ProtocolError
from asyncdicom.modality import UserIdentity
from asyncdicom.upper_layer import negotiation
from asyncdicom.upper_layer.context import AcceptedContext, PresentationContext
from asyncdicom.upper_layer.negotiation import (
    AssociateAccept,
    AssociateRequest,
    CommonExtendedNegotiation,
    ContextResult,
    ExtendedNegotiation,
    ProposedContext,
    Role,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ECHO = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

REQUEST = AssociateRequest(
    "CALLED",
    "CALLING",
    (ProposedContext(1, ECHO, (IMPLICIT,)), ProposedContext(3, CT, (EXPLICIT, IMPLICIT))),
    max_length=65_536,
    asynchronous_operations=(1, 5),
    roles=(Role(CT, False, True),),
    extended=(ExtendedNegotiation(CT, b"\1\0\1\1"),),
    common_extended=(CommonExtendedNegotiation(CT, "1.2.840.10008.4.2", (MR, "1.2.840.10008.5.1.4.1.1.7")),),
    user_identity=UserIdentity("username+passcode", b"someone", b"pass", True),
)
ACCEPT = AssociateAccept(
    "CALLED",
    "CALLING",
    (ContextResult(1, 0, IMPLICIT), ContextResult(3, 4, EXPLICIT)),
    max_length=0,
    asynchronous_operations=(1, 1),
    roles=(Role(CT, False, True),),
    extended=(ExtendedNegotiation(CT, b"\1"),),
    user_identity_response=b"token",
)


def user_item(name: str, **fields: Any) -> Any:
    item = getattr(pdu_primitives, name)()
    for field, value in fields.items():
        setattr(item, field, value)
    return item


def primitive(associate: AssociateRequest | AssociateAccept) -> A_ASSOCIATE:
    """The same in terms of pynetdicom."""
    found = A_ASSOCIATE()
    found.application_context_name = associate.application_context
    found.called_ae_title, found.calling_ae_title = associate.called_ae_title, associate.calling_ae_title
    items = [
        user_item("MaximumLengthNotification", maximum_length_received=associate.max_length),
        user_item("ImplementationClassUIDNotification", implementation_class_uid=associate.implementation_class_uid),
    ]
    if associate.asynchronous_operations is not None:
        invoked, performed = associate.asynchronous_operations
        items.append(
            user_item(
                "AsynchronousOperationsWindowNegotiation",
                maximum_number_operations_invoked=invoked,
                maximum_number_operations_performed=performed,
            )
        )
    items += [
        user_item("SCP_SCU_RoleSelectionNegotiation", sop_class_uid=role.sop_class, scu_role=role.scu, scp_role=role.scp)
        for role in associate.roles
    ]
    items.append(
        user_item("ImplementationVersionNameNotification", implementation_version_name=associate.implementation_version)
    )
    items += [
        user_item(
            "SOPClassExtendedNegotiation",
            sop_class_uid=extended.sop_class,
            service_class_application_information=extended.information,
        )
        for extended in associate.extended
    ]
    if isinstance(associate, AssociateRequest):
        items += [
            user_item(
                "SOPClassCommonExtendedNegotiation",
                sop_class_uid=common.sop_class,
                service_class_uid=common.service_class,
                related_general_sop_class_identification=list(common.related_general_sop_classes),
            )
            for common in associate.common_extended
        ]
        if associate.user_identity is not None:
            identity = associate.user_identity
            items.append(
                user_item(
                    "UserIdentityNegotiation",
                    user_identity_type=identity.type_code,
                    primary_field=identity.primary,
                    secondary_field=identity.secondary,
                    positive_response_requested=identity.response,
                )
            )
        contexts = []
        for proposed in associate.contexts:
            context = build_context(proposed.abstract_syntax, list(proposed.transfer_syntaxes))
            context.context_id = proposed.context_id
            contexts.append(context)
        found.presentation_context_definition_list = contexts
    else:
        if associate.user_identity_response is not None:
            items.append(user_item("UserIdentityNegotiation", server_response=associate.user_identity_response))
        contexts = []
        for result in associate.contexts:
            context = build_context(CT, result.transfer_syntax)
            context.context_id, context.result = result.context_id, result.result
            contexts.append(context)
        found.presentation_context_definition_results_list = contexts
        found.result = 0
    found.user_information = items
    return found


def test_a_request_is_the_bytes_that_pynetdicom_sends() -> None:
    expected = A_ASSOCIATE_RQ(primitive(REQUEST)).encode()
    assert negotiation.encode_request(REQUEST) == expected
    assert negotiation.decode_request(expected[6:]) == REQUEST


def test_an_acceptance_is_the_bytes_that_pynetdicom_sends() -> None:
    expected = A_ASSOCIATE_AC(primitive(ACCEPT)).encode()
    assert negotiation.encode_accept(ACCEPT) == expected
    assert negotiation.decode_accept(expected[6:]) == ACCEPT


uids = st.from_regex(r"[12](\.(0|[1-9][0-9]{0,8})){1,6}", fullmatch=True)
titles = st.from_regex(r"[A-Z0-9_]([A-Z0-9_ ]{0,14}[A-Z0-9_])?", fullmatch=True)
roles = st.builds(Role, uids, st.booleans(), st.just(True))
requests = st.builds(
    AssociateRequest,
    titles,
    titles,
    st.lists(st.tuples(uids, st.lists(uids, min_size=1, max_size=3, unique=True)), min_size=1, max_size=4).map(
        lambda found: tuple(ProposedContext(2 * n + 1, abstract, tuple(ts)) for n, (abstract, ts) in enumerate(found))
    ),
    max_length=st.integers(0, 0xFFFFFFFF),
    roles=st.lists(roles, max_size=2, unique_by=lambda role: role.sop_class).map(tuple),
    extended=st.lists(st.builds(ExtendedNegotiation, uids, st.binary(min_size=1, max_size=9)), max_size=2).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(requests)
def test_requests_are_encoded_and_decoded_as_pynetdicom_does(request: AssociateRequest) -> None:
    encoded = negotiation.encode_request(request)
    assert encoded == A_ASSOCIATE_RQ(primitive(request)).encode()
    assert negotiation.decode_request(encoded[6:]) == request
    theirs = A_ASSOCIATE_RQ()
    theirs.decode(encoded)
    assert theirs.calling_ae_title == request.calling_ae_title


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2_000), st.integers(0, 255), st.integers(0, 500))
def test_a_damaged_negotiation_is_decoded_or_a_protocol_error(at: int, value: int, cut: int) -> None:
    for encode, decode, sent in (
        (negotiation.encode_request, negotiation.decode_request, REQUEST),
        (negotiation.encode_accept, negotiation.decode_accept, ACCEPT),
    ):
        body = bytearray(encode(sent)[6:])  # type: ignore[arg-type]
        body[at % len(body)] = value
        for damaged in (bytes(body), bytes(body[: cut % len(body)])):
            with contextlib.suppress(ProtocolError):
                repr(decode(damaged))


def test_unknown_user_information_sub_items_are_kept_and_otherwise_ignored() -> None:
    for encode, decode, plain in (
        (negotiation.encode_request, negotiation.decode_request, REQUEST),
        (negotiation.encode_accept, negotiation.decode_accept, ACCEPT),
    ):
        sent = dataclasses.replace(plain, other_items=((0x5F, b"new"), (0xFF, b"")))
        assert decode(encode(sent)[6:]) == sent  # type: ignore[arg-type]


def test_items_of_unknown_type_are_ignored() -> None:
    body = negotiation.encode_request(REQUEST)[6:] + b"\x99\0\0\x02ab"
    assert negotiation.decode_request(body) == REQUEST


def test_a_user_identity_of_unknown_type_counts_as_absent() -> None:
    request = dataclasses.replace(REQUEST, user_identity=None, other_items=((0x58, b"\x09\x01\x00\x01a\x00\x00"),))
    assert negotiation.decode_request(negotiation.encode_request(request)[6:]).user_identity is None


@pytest.mark.parametrize(
    ("title", "read"), [(b"CT1\0\0\0\0\0\0\0\0\0\0\0\0\0", "CT1"), (b" " * 16, ""), (b"R\xf6ntgen".ljust(16), "Röntgen")]
)
def test_ae_titles_are_taken_as_they_come(title: bytes, read: str) -> None:
    body = bytearray(negotiation.encode_request(REQUEST)[6:])
    body[20:36] = title
    request = negotiation.decode_request(body)
    assert request.calling_ae_title == read
    accept = dataclasses.replace(ACCEPT, calling_ae_title=request.calling_ae_title)
    assert negotiation.decode_accept(negotiation.encode_accept(accept)[6:]).calling_ae_title == read


def test_uids_are_taken_without_their_padding_whatever_their_length() -> None:
    request = dataclasses.replace(REQUEST, contexts=(ProposedContext(1, "1.2" * 30, (IMPLICIT + "\0",)),))
    (context,) = negotiation.decode_request(negotiation.encode_request(request)[6:]).contexts
    assert context == ProposedContext(1, "1.2" * 30, (IMPLICIT,))


def test_what_is_left_out_has_a_value_that_every_peer_can_take() -> None:
    body = negotiation.encode_request(REQUEST)[6:74]
    request = negotiation.decode_request(body)
    assert (request.max_length, request.implementation_class_uid, request.implementation_version) == (16_384, "", None)
    assert request.contexts == ()


@pytest.mark.parametrize(
    "tail",
    [
        b"\x20\0\0",
        b"\x20\0\0\x08\x01",
        b"\x20\0\0\x02\x01\0",
        b"\x20\0\0\x04\x02\0\0\0",
        b"\x20\0\0\x08\x01\0\0\0\x30\0\0\xff",
        b"\x50\0\0\x06\x51\0\0\x02ab",
        b"\x50\0\0\x06\x54\0\0\x02\xff\xff",
        b"\x50\0\0\x06\x58\0\0\x02\x01\x01",
        b"\x20\0\0\x04\x01\0\0\0\x20\0\0\x04\x01\0\0\0",
    ],
    ids=["cut", "beyond", "no context", "even", "sub-item beyond", "short length", "role", "identity", "twice"],
)
def test_a_malformed_request_is_a_protocol_error(tail: bytes) -> None:
    with pytest.raises(ProtocolError):
        negotiation.decode_request(negotiation.encode_request(REQUEST)[6:74] + tail)


def test_a_request_shorter_than_its_fixed_fields_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="at least 68"):
        negotiation.decode_request(b"\0" * 67)


def test_contexts_are_numbered_with_odd_numbers_and_roles_gathered_once() -> None:
    contexts, asked = negotiation.propose(
        [
            PresentationContext(ECHO, (IMPLICIT,)),
            PresentationContext(CT, (EXPLICIT,), scp_role=True),
            PresentationContext(CT, (IMPLICIT,), scu_role=False, scp_role=True),
        ]
    )
    assert [context.context_id for context in contexts] == [1, 3, 5]
    assert asked == (Role(CT, False, True),)


@pytest.mark.parametrize("count", [0, 129])
def test_an_association_holds_1_to_128_contexts(count: int) -> None:
    with pytest.raises(ConfigurationError, match="1 to 128"):
        negotiation.propose([PresentationContext(ECHO)] * count)


@pytest.mark.parametrize(
    "change",
    [
        {"called_ae_title": "A" * 17},
        {"user_identity": UserIdentity("saml", bytes(65_536))},
        {"other_items": ((1, bytes(65_536)),)},
    ],
    ids=["ae title", "token", "item"],
)
def test_what_does_not_fit_its_field_is_a_configuration_error(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        negotiation.encode_request(dataclasses.replace(REQUEST, **change))


def test_the_first_common_transfer_syntax_in_the_requestors_order_is_accepted() -> None:
    known = {CT: (IMPLICIT, EXPLICIT), MR: ("1.2.3",)}
    contexts = (
        ProposedContext(1, CT, (EXPLICIT, IMPLICIT)),
        ProposedContext(3, MR, (EXPLICIT,)),
        ProposedContext(5, "1.2.3.4", (EXPLICIT,)),
        ProposedContext(7, CT, ()),
    )
    assert negotiation.negotiate(contexts, known.get) == (
        ContextResult(1, 0, EXPLICIT),
        ContextResult(3, 4, EXPLICIT),
        ContextResult(5, 3, EXPLICIT),
        ContextResult(7, 4, IMPLICIT),
    )


@pytest.mark.parametrize(
    ("asked", "answered", "as_scu", "as_scp"),
    [
        ((), (), True, False),
        ((Role(CT, True, True),), (), True, False),
        ((), (Role(CT, False, True),), True, False),
        ((Role(CT, True, True),), (Role(CT, True, True),), True, True),
        ((Role(CT, False, True),), (Role(CT, True, True),), False, True),
        ((Role(CT, True, True),), (Role(CT, True, False),), True, False),
    ],
)
def test_roles_hold_only_where_both_sides_named_them(
    asked: tuple[Role, ...], answered: tuple[Role, ...], as_scu: bool, as_scp: bool
) -> None:
    request = dataclasses.replace(REQUEST, roles=asked)
    accept = dataclasses.replace(ACCEPT, roles=answered, contexts=(ContextResult(3, 0, IMPLICIT), ContextResult(1, 3, "")))
    assert negotiation.accepted_contexts(request, accept) == (AcceptedContext(3, CT, IMPLICIT, as_scu, as_scp),)


@pytest.mark.parametrize("result", [ContextResult(9, 0, IMPLICIT), ContextResult(1, 0, EXPLICIT)])
def test_accepting_what_was_not_proposed_is_a_protocol_error(result: ContextResult) -> None:
    with pytest.raises(ProtocolError, match="not proposed"):
        negotiation.accepted_contexts(REQUEST, dataclasses.replace(ACCEPT, contexts=(result,)))


def test_a_repr_of_a_request_holds_no_secret() -> None:
    shown = repr(REQUEST)
    assert "b'pass'" not in shown
    assert "someone" not in shown
