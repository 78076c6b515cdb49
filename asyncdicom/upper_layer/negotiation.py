"""The request for association and its acceptance, as data (PS3.8 sections 9.3.2, 9.3.3 and Annex D, PS3.7 Annex D.3).

Written by hand rather than on pynetdicom's codec, which refuses a user-information sub-item that it does not know; PS3.8
D.2 has them ignored, and newer devices send them. The tests hold both directions against pynetdicom.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from asyncdicom.errors import ConfigurationError, DatasetError, ProtocolError
from asyncdicom.modality import UserIdentity
from asyncdicom.upper_layer.context import (
    IMPLICIT_VR_LITTLE_ENDIAN,
    MAX_CONTEXTS,
    MAX_UID_LENGTH,
    AcceptedContext,
    PresentationContext,
)
from asyncdicom.upper_layer.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from asyncdicom.upper_layer.pdu import PDUType, encode_pdu

# PS3.7 Annex A.2.1: the only one there is.
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
DEFAULT_MAX_LENGTH = 131_072
# PS3.8 section 9.3.2 has this bit alone tested; without it, the A-ASSOCIATE-RJ says this.
PROTOCOL_VERSION = 1
PROTOCOL_VERSION_NOT_SUPPORTED = (1, 2, 2)

_FIXED = struct.Struct(">HH16s16s32x")
_ITEM = struct.Struct(">BxH")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_PAIR = struct.Struct(">HH")

_IDENTITY_KINDS: dict[int, Literal["username", "username+passcode", "kerberos", "saml", "jwt"]] = {
    1: "username",
    2: "username+passcode",
    3: "kerberos",
    4: "saml",
    5: "jwt",
}


class Result(IntEnum):
    """What became of a proposed presentation context (PS3.8 Table 9-18)."""

    ACCEPTANCE = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context of an A-ASSOCIATE-RQ.

    :ivar context_id: odd, 1 to 255
    :ivar abstract_syntax: a SOP class UID
    :ivar transfer_syntaxes: transfer syntax UIDs in the requestor's order
    """

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContextResult:
    """A presentation context of an A-ASSOCIATE-AC.

    :ivar context_id: which proposed context it answers
    :ivar result: one of :class:`Result`
    :ivar transfer_syntax: the one agreed; of no meaning unless accepted
    """

    context_id: int
    result: int
    transfer_syntax: str = ""


@dataclass(frozen=True, slots=True)
class Role:
    """SCP/SCU role selection for one SOP class (PS3.7 D.3.3.4); both speak of the requestor's role."""

    sop_class: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class ExtendedNegotiation:
    """SOP class extended negotiation (PS3.7 D.3.3.5).

    :ivar information: the Service-class-application-information
    """

    sop_class: str
    information: bytes


@dataclass(frozen=True, slots=True)
class CommonExtendedNegotiation:
    """SOP class common extended negotiation (PS3.7 D.3.3.6); the acceptor does not answer it."""

    sop_class: str
    service_class: str
    related_general_sop_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """An A-ASSOCIATE-RQ.

    :ivar called_ae_title: without padding; as received it may hold any character of Latin-1
    :ivar calling_ae_title: likewise
    :ivar max_length: the largest P-DATA-TF that the requestor takes, in bytes; 0 for no limit (PS3.8 D.1)
    :ivar asynchronous_operations: maximum numbers of operations invoked and performed (PS3.7 D.3.3.3)
    :ivar user_identity: None when there is none, or one of a type that PS3.7 does not know
    :ivar other_items: user-information sub-items that this module does not know, as they came: type and content
    :ivar protocol_version: bit 0 stands for version 1
    """

    called_ae_title: str
    calling_ae_title: str
    contexts: tuple[ProposedContext, ...]
    max_length: int = DEFAULT_MAX_LENGTH
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    implementation_version: str | None = IMPLEMENTATION_VERSION
    asynchronous_operations: tuple[int, int] | None = None
    roles: tuple[Role, ...] = ()
    extended: tuple[ExtendedNegotiation, ...] = ()
    common_extended: tuple[CommonExtendedNegotiation, ...] = ()
    user_identity: UserIdentity | None = None
    other_items: tuple[tuple[int, bytes], ...] = ()
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = 1


@dataclass(frozen=True, slots=True)
class AssociateAccept:
    """An A-ASSOCIATE-AC; the fields are as in :class:`AssociateRequest`.

    :ivar called_ae_title: what the request said, sent back (PS3.8 Table 9-17)
    :ivar user_identity_response: the server response to a user identity (PS3.7 D.3.3.7.2); None for no answer
    """

    called_ae_title: str
    calling_ae_title: str
    contexts: tuple[ContextResult, ...]
    max_length: int = DEFAULT_MAX_LENGTH
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    implementation_version: str | None = IMPLEMENTATION_VERSION
    asynchronous_operations: tuple[int, int] | None = None
    roles: tuple[Role, ...] = ()
    extended: tuple[ExtendedNegotiation, ...] = ()
    user_identity_response: bytes | None = None
    other_items: tuple[tuple[int, bytes], ...] = ()
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = 1


def propose(contexts: Iterable[PresentationContext]) -> tuple[tuple[ProposedContext, ...], tuple[Role, ...]]:
    """Number presentation contexts 1, 3, 5 ... and gather their role selections.

    :raises ConfigurationError: for none, or for more than 128
    :raises DatasetError: for what is too long to be a UID, as a file may have it for its SOP class
    """
    wanted = list(contexts)
    if not 1 <= len(wanted) <= MAX_CONTEXTS:
        raise ConfigurationError("contexts", len(wanted), f"an association has 1 to {MAX_CONTEXTS} presentation contexts")
    roles: dict[str, Role] = {}
    for context in wanted:
        if any(len(uid) > MAX_UID_LENGTH for uid in (context.abstract_syntax, *context.transfer_syntaxes)):
            raise DatasetError(f"a presentation context has a UID of more than {MAX_UID_LENGTH} characters")
        if context.scu_role is not None or context.scp_role is not None:
            # One item per SOP class; what was not said stays at the default role, SCU.
            scu = True if context.scu_role is None else context.scu_role
            roles[context.abstract_syntax] = Role(context.abstract_syntax, scu, bool(context.scp_role))
    proposed = tuple(
        ProposedContext(2 * index + 1, context.abstract_syntax, tuple(context.transfer_syntaxes))
        for index, context in enumerate(wanted)
    )
    return proposed, tuple(roles.values())


def negotiate(
    contexts: Iterable[ProposedContext], transfer_syntaxes_of: Callable[[str], Container[str] | None]
) -> tuple[ContextResult, ...]:
    """Answer proposed contexts as the acceptor: the first transfer syntax that both know, in the requestor's order.

    What is too long for a UID is known to nobody (PS3.5 section 9.1).

    :param transfer_syntaxes_of: what we take for an abstract syntax; None when it is not supported at all
    """
    results = []
    for context in contexts:
        ours = transfer_syntaxes_of(context.abstract_syntax) if len(context.abstract_syntax) <= MAX_UID_LENGTH else None
        proposed = [syntax for syntax in context.transfer_syntaxes if 0 < len(syntax) <= MAX_UID_LENGTH]
        # A context that is not accepted still carries a transfer syntax, of no meaning (PS3.8 Table 9-18).
        transfer_syntax = proposed[0] if proposed else IMPLICIT_VR_LITTLE_ENDIAN
        if ours is None:
            result = Result.ABSTRACT_SYNTAX_NOT_SUPPORTED
        else:
            common = next((syntax for syntax in proposed if syntax in ours), None)
            result = Result.ACCEPTANCE if common is not None else Result.TRANSFER_SYNTAXES_NOT_SUPPORTED
            transfer_syntax = common or transfer_syntax
        results.append(ContextResult(context.context_id, int(result), transfer_syntax))
    return tuple(results)


def accepted_contexts(request: AssociateRequest, accept: AssociateAccept) -> tuple[AcceptedContext, ...]:
    """Return what both sides agreed on, the roles as seen by the requestor (PS3.7 D.3.3.4).

    :raises ProtocolError: when the acceptor chose a context or a transfer syntax that was not proposed
    """
    proposed = {context.context_id: context for context in request.contexts}
    asked = {role.sop_class: role for role in request.roles}
    answered = {role.sop_class: role for role in accept.roles}
    agreed = []
    for result in accept.contexts:
        if result.result != Result.ACCEPTANCE:
            continue
        context = proposed.get(result.context_id)
        if context is None:
            raise ProtocolError(f"the peer accepted presentation context {result.context_id}, which was not proposed")
        if result.transfer_syntax not in context.transfer_syntaxes:
            raise ProtocolError(f"the peer chose a transfer syntax that was not proposed for context {result.context_id}")
        ask, answer = asked.get(context.abstract_syntax), answered.get(context.abstract_syntax)
        if ask is None or answer is None:
            # Without an answer the default roles hold (PS3.7 D.3.3.4.1).
            as_scu, as_scp = True, False
        else:
            as_scu, as_scp = ask.scu and answer.scu, ask.scp and answer.scp
        agreed.append(AcceptedContext(context.context_id, context.abstract_syntax, result.transfer_syntax, as_scu, as_scp))
    return tuple(agreed)


def encode_request(request: AssociateRequest) -> bytes:
    """Encode an A-ASSOCIATE-RQ, header included (PS3.8 section 9.3.2).

    :raises ConfigurationError: when something does not fit its field
    """
    items = [
        _item(0x20, bytes((context.context_id, 0, 0, 0)) + _uid_item(0x30, context.abstract_syntax) + _syntaxes(context))
        for context in request.contexts
    ]
    information = _common_items(request)
    for common in request.common_extended:
        related = b"".join(_counted_uid(uid) for uid in common.related_general_sop_classes)
        body = _counted_uid(common.sop_class) + _counted_uid(common.service_class) + _counted(related)
        information.append(_item(0x57, body))
    identity = request.user_identity
    if identity is not None:
        head = bytes((identity.type_code, identity.response))
        # There is a second field for the passcode alone (PS3.7 Table D.3-14).
        secondary = identity.secondary if identity.kind == "username+passcode" else b""
        information.append(_item(0x58, head + _counted(identity.primary) + _counted(secondary)))
    return _encode(PDUType.ASSOCIATE_RQ, request, items, information)


def encode_accept(accept: AssociateAccept) -> bytes:
    """Encode an A-ASSOCIATE-AC, header included (PS3.8 section 9.3.3).

    :raises ConfigurationError: when something does not fit its field
    """
    items = [
        _item(0x21, bytes((context.context_id, 0, context.result, 0)) + _uid_item(0x40, context.transfer_syntax))
        for context in accept.contexts
    ]
    information = _common_items(accept)
    if accept.user_identity_response is not None:
        information.append(_item(0x59, _counted(accept.user_identity_response)))
    return _encode(PDUType.ASSOCIATE_AC, accept, items, information)


def _encode(
    pdu_type: PDUType, associate: AssociateRequest | AssociateAccept, items: list[bytes], information: list[bytes]
) -> bytes:
    information += [_item(kind, content) for kind, content in associate.other_items]
    fixed = _FIXED.pack(
        associate.protocol_version,
        0,
        _ae_title(associate.called_ae_title, "called_ae_title"),
        _ae_title(associate.calling_ae_title, "calling_ae_title"),
    )
    application_context = _uid_item(0x10, associate.application_context)
    return encode_pdu(pdu_type, b"".join((fixed, application_context, *items, _item(0x50, b"".join(information)))))


def _common_items(associate: AssociateRequest | AssociateAccept) -> list[bytes]:
    items = [_item(0x51, _U32.pack(associate.max_length)), _uid_item(0x52, associate.implementation_class_uid)]
    if associate.asynchronous_operations is not None:
        items.append(_item(0x53, _PAIR.pack(*associate.asynchronous_operations)))
    items += [_item(0x54, _counted_uid(role.sop_class) + bytes((role.scu, role.scp))) for role in associate.roles]
    if associate.implementation_version:
        items.append(_item(0x55, associate.implementation_version.encode("latin-1")))
    items += [_item(0x56, _counted_uid(item.sop_class) + item.information) for item in associate.extended]
    return items


def _item(kind: int, content: bytes) -> bytes:
    if len(content) > 0xFFFF:
        raise ConfigurationError("association", f"{len(content)} bytes", f"item 0x{kind:02X} of a PDU holds 65535 bytes")
    return _ITEM.pack(kind, len(content)) + content


def _counted(content: bytes) -> bytes:
    if len(content) > 0xFFFF:
        raise ConfigurationError("association", f"{len(content)} bytes", "a field of a PDU's item holds 65535 bytes")
    return _U16.pack(len(content)) + content


def _counted_uid(uid: str) -> bytes:
    return _counted(uid.encode("latin-1"))


def _uid_item(kind: int, uid: str) -> bytes:
    return _item(kind, uid.encode("latin-1"))


def _syntaxes(context: ProposedContext) -> bytes:
    return b"".join(_uid_item(0x40, uid) for uid in context.transfer_syntaxes)


def _ae_title(title: str, path: str) -> bytes:
    # Latin-1 sends back whatever a request held, byte for byte.
    encoded = title.encode("latin-1", "replace")
    if len(encoded) > 16:
        raise ConfigurationError(path, title, "an AE title has at most 16 characters")
    return encoded.ljust(16)


def decode_request(body: bytes | memoryview) -> AssociateRequest:
    """Decode an A-ASSOCIATE-RQ (PS3.8 section 9.3.2).

    Items and sub-items of unknown type are passed over. UIDs and AE titles are taken as they come: whether they are any good
    is for the acceptor to decide.

    :param body: the PDU without its header
    :raises ProtocolError: when it cannot be decoded
    """
    version, called, calling, items = _fixed(body, "A-ASSOCIATE-RQ")
    contexts: list[ProposedContext] = []
    application_context = ""
    user = _UserInformation()
    for kind, content in items:
        if kind == 0x20:
            context_id, _, sub_items = _context(content)
            abstract_syntax, transfer_syntaxes = "", []
            for sub_kind, sub_content in sub_items:
                if sub_kind == 0x30:
                    abstract_syntax = _text(sub_content)
                elif sub_kind == 0x40:
                    transfer_syntaxes.append(_text(sub_content))
            contexts.append(ProposedContext(context_id, abstract_syntax, tuple(transfer_syntaxes)))
        elif kind == 0x10:
            application_context = _text(content)
        elif kind == 0x50:
            user.decode(content)
    _check_unique([context.context_id for context in contexts])
    return AssociateRequest(
        called,
        calling,
        tuple(contexts),
        user.max_length,
        user.implementation_class_uid,
        user.implementation_version,
        user.asynchronous_operations,
        tuple(user.roles),
        tuple(user.extended),
        tuple(user.common_extended),
        user.user_identity,
        tuple(user.other_items),
        application_context,
        version,
    )


def decode_accept(body: bytes | memoryview) -> AssociateAccept:
    """Decode an A-ASSOCIATE-AC (PS3.8 section 9.3.3); unknown items are passed over as in :func:`decode_request`.

    :param body: the PDU without its header
    :raises ProtocolError: when it cannot be decoded
    """
    version, called, calling, items = _fixed(body, "A-ASSOCIATE-AC")
    contexts: list[ContextResult] = []
    application_context = ""
    user = _UserInformation()
    for kind, content in items:
        if kind == 0x21:
            context_id, result, sub_items = _context(content)
            transfer_syntax = next((_text(sub) for sub_kind, sub in sub_items if sub_kind == 0x40), "")
            contexts.append(ContextResult(context_id, result, transfer_syntax))
        elif kind == 0x10:
            application_context = _text(content)
        elif kind == 0x50:
            user.decode(content)
    _check_unique([context.context_id for context in contexts])
    return AssociateAccept(
        called,
        calling,
        tuple(contexts),
        user.max_length,
        user.implementation_class_uid,
        user.implementation_version,
        user.asynchronous_operations,
        tuple(user.roles),
        tuple(user.extended),
        user.user_identity_response,
        tuple(user.other_items),
        application_context,
        version,
    )


class _UserInformation:
    """The sub-items of a User Information item, as they are read (PS3.7 D.3.3)."""

    def __init__(self) -> None:
        # Both are mandatory; a peer that leaves them out gets what every implementation can take.
        self.max_length = 16_384
        self.implementation_class_uid = ""
        self.implementation_version: str | None = None
        self.asynchronous_operations: tuple[int, int] | None = None
        self.roles: list[Role] = []
        self.extended: list[ExtendedNegotiation] = []
        self.common_extended: list[CommonExtendedNegotiation] = []
        self.user_identity: UserIdentity | None = None
        self.user_identity_response: bytes | None = None
        self.other_items: list[tuple[int, bytes]] = []

    def decode(self, content: memoryview) -> None:
        for kind, item in _items(content):
            try:
                self._decode_item(kind, item)
            except (struct.error, IndexError):
                raise ProtocolError(f"user-information sub-item 0x{kind:02X} is too short") from None

    def _decode_item(self, kind: int, item: memoryview) -> None:
        if kind == 0x51:
            (self.max_length,) = _U32.unpack_from(item)
        elif kind == 0x52:
            self.implementation_class_uid = _text(item)
        elif kind == 0x53:
            self.asynchronous_operations = _PAIR.unpack_from(item)
        elif kind == 0x54:
            sop_class, at = _take(item, 0)
            self.roles.append(Role(_text(sop_class), bool(item[at]), bool(item[at + 1])))
        elif kind == 0x55:
            self.implementation_version = _text(item) or None
        elif kind == 0x56:
            sop_class, at = _take(item, 0)
            self.extended.append(ExtendedNegotiation(_text(sop_class), bytes(item[at:])))
        elif kind == 0x57:
            sop_class, at = _take(item, 0)
            service_class, at = _take(item, at)
            related, _ = _take(item, at)
            uids, at = [], 0
            while at < len(related):
                uid, at = _take(related, at)
                uids.append(_text(uid))
            self.common_extended.append(CommonExtendedNegotiation(_text(sop_class), _text(service_class), tuple(uids)))
        elif kind == 0x58:
            primary, at = _take(item, 2)
            secondary, _ = _take(item, at)
            known = _IDENTITY_KINDS.get(item[0])
            if known is not None:
                self.user_identity = UserIdentity(known, bytes(primary), bytes(secondary), bool(item[1]))
        elif kind == 0x59:
            self.user_identity_response = bytes(_take(item, 0)[0])
        else:
            self.other_items.append((kind, bytes(item)))


def _fixed(body: bytes | memoryview, name: str) -> tuple[int, str, str, Iterator[tuple[int, memoryview]]]:
    view = memoryview(body)
    if len(view) < _FIXED.size:
        raise ProtocolError(f"{name} of {len(view)} bytes, it has at least {_FIXED.size}")
    version, _, called, calling = _FIXED.unpack_from(view)
    return version, _strip(called), _strip(calling), _items(view[_FIXED.size :])


def _items(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    at, end = 0, len(view)
    while at < end:
        if end - at < 4:
            raise ProtocolError("the PDU ends inside the header of an item")
        kind, length = _ITEM.unpack_from(view, at)
        at += 4
        if at + length > end:
            raise ProtocolError(f"item 0x{kind:02X} of {length} bytes where {end - at} are left")
        yield kind, view[at : at + length]
        at += length


def _context(content: memoryview) -> tuple[int, int, Iterator[tuple[int, memoryview]]]:
    if len(content) < 4:
        raise ProtocolError("presentation context item without its context ID")
    if not content[0] & 1:
        raise ProtocolError(f"presentation context ID {content[0]} is even")
    return content[0], content[2], _items(content[4:])


def _take(item: memoryview, at: int) -> tuple[memoryview, int]:
    (length,) = _U16.unpack_from(item, at)
    stop = at + 2 + length
    if stop > len(item):
        raise ProtocolError(f"a field of {length} bytes where {len(item) - at - 2} are left")
    return item[at + 2 : stop], stop


def _text(content: memoryview) -> str:
    return _strip(bytes(content))


def _strip(content: bytes) -> str:
    # Devices pad with spaces or NULs, whatever the standard says.
    return content.decode("latin-1").strip(" \0")


def _check_unique(context_ids: list[int]) -> None:
    if len(set(context_ids)) != len(context_ids):
        raise ProtocolError("a presentation context ID occurs twice")
