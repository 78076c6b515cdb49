"""DIMSE messages: command sets, and messages put together from fragments (PS3.7 section 6.3, PS3.8 Annex E).

A command set is a handful of short elements in implicit VR little endian. It is written and read by hand, because every
message passes here and a general codec costs more than the rest of a small operation; the tests hold it against pynetdicom.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from asyncdicom.errors import DatasetError, ProtocolError
from asyncdicom.upper_layer.context import MAX_UID_LENGTH
from asyncdicom.upper_layer.pdu import PDV

# Up to so many bytes of a dataset the fragments are kept as they came, and joined once; a larger one grows as it comes.
_JOINED_ONCE = 4 << 20
# A fragment is kept as a view of what was read with it when it is at least this part of that; smaller ones are copied.
_SHARE = 4

# Command sets are a few hundred bytes; the largest legal one lists attributes by the thousand (N-GET).
MAX_COMMAND_LENGTH = 65_536
NO_DATASET = 0x0101
# Any other value says that a dataset follows (PS3.7 E.1); this is what others send.
WITH_DATASET = 0x0001
PRIORITY_MEDIUM = 0x0000

_ELEMENT = struct.Struct("<HHI")
_US = struct.Struct("<HHIH")
_GROUP_LENGTH = struct.Struct("<HHII")

_VR = Literal["UI", "US", "AE", "LO", "AT"]

# PS3.7 Table E.1-1, without the command group length, which is computed.
_ELEMENTS: dict[str, tuple[int, _VR]] = {
    "AffectedSOPClassUID": (0x0002, "UI"),
    "RequestedSOPClassUID": (0x0003, "UI"),
    "CommandField": (0x0100, "US"),
    "MessageID": (0x0110, "US"),
    "MessageIDBeingRespondedTo": (0x0120, "US"),
    "MoveDestination": (0x0600, "AE"),
    "Priority": (0x0700, "US"),
    "CommandDataSetType": (0x0800, "US"),
    "Status": (0x0900, "US"),
    "OffendingElement": (0x0901, "AT"),
    "ErrorComment": (0x0902, "LO"),
    "ErrorID": (0x0903, "US"),
    "AffectedSOPInstanceUID": (0x1000, "UI"),
    "RequestedSOPInstanceUID": (0x1001, "UI"),
    "EventTypeID": (0x1002, "US"),
    "AttributeIdentifierList": (0x1005, "AT"),
    "ActionTypeID": (0x1008, "US"),
    "NumberOfRemainingSuboperations": (0x1020, "US"),
    "NumberOfCompletedSuboperations": (0x1021, "US"),
    "NumberOfFailedSuboperations": (0x1022, "US"),
    "NumberOfWarningSuboperations": (0x1023, "US"),
    "MoveOriginatorApplicationEntityTitle": (0x1030, "AE"),
    "MoveOriginatorMessageID": (0x1031, "US"),
}
# Every keyword that a command set can have.
ELEMENT_KEYWORDS = tuple(_ELEMENTS)
_KEYWORDS: dict[int, tuple[str, _VR]] = {element: (keyword, vr) for keyword, (element, vr) in _ELEMENTS.items()}


class CommandField(IntEnum):
    """Which message it is (PS3.7 E.1-1)."""

    C_STORE_RQ = 0x0001
    C_STORE_RSP = 0x8001
    C_GET_RQ = 0x0010
    C_GET_RSP = 0x8010
    C_FIND_RQ = 0x0020
    C_FIND_RSP = 0x8020
    C_MOVE_RQ = 0x0021
    C_MOVE_RSP = 0x8021
    C_ECHO_RQ = 0x0030
    C_ECHO_RSP = 0x8030
    C_CANCEL_RQ = 0x0FFF
    N_EVENT_REPORT_RQ = 0x0100
    N_EVENT_REPORT_RSP = 0x8100
    N_GET_RQ = 0x0110
    N_GET_RSP = 0x8110
    N_SET_RQ = 0x0120
    N_SET_RSP = 0x8120
    N_ACTION_RQ = 0x0130
    N_ACTION_RSP = 0x8130
    N_CREATE_RQ = 0x0140
    N_CREATE_RSP = 0x8140
    N_DELETE_RQ = 0x0150
    N_DELETE_RSP = 0x8150


RESPONSE = 0x8000
_MESSAGE_NAMES = {int(field): field.name.replace("_", "-") for field in CommandField}
# C-FIND, C-MOVE and C-GET are the messages that carry a priority besides C-STORE (PS3.7 section 9.3).
_WITH_PRIORITY = frozenset({CommandField.C_STORE_RQ, CommandField.C_FIND_RQ, CommandField.C_GET_RQ, CommandField.C_MOVE_RQ})
# Their requests name the SOP class as "requested", their responses as "affected" (PS3.7 section 10.3).
_REQUESTED = frozenset({CommandField.N_GET_RQ, CommandField.N_SET_RQ, CommandField.N_ACTION_RQ, CommandField.N_DELETE_RQ})
# Of the responses, these name no instance (PS3.7 section 9.3).
_WITHOUT_INSTANCE = frozenset({CommandField.C_ECHO_RQ, CommandField.C_FIND_RQ, CommandField.C_GET_RQ, CommandField.C_MOVE_RQ})


class Command(dict[str, Any]):
    """A command set: keyword to value (``int``, ``str``, or a tuple of tags as ``int``).

    The properties are for elements that the message must have; they raise :class:`ProtocolError` where the peer left them
    out. Everything else is read as from any dict.
    """

    __slots__ = ()

    def _number(self, keyword: str) -> int:
        value = self.get(keyword)
        if not isinstance(value, int):
            raise ProtocolError(f"{self.name} without {keyword}")
        return value

    def _text(self, keyword: str) -> str:
        value = self.get(keyword)
        if not isinstance(value, str) or not value:
            raise ProtocolError(f"{self.name} without {keyword}")
        return value

    @property
    def name(self) -> str:
        """The standard's name of the message, such as ``C-STORE-RQ``."""
        field = self.get("CommandField")
        return _MESSAGE_NAMES.get(field, f"command 0x{field:04X}") if isinstance(field, int) else "command set"

    @property
    def field(self) -> int:
        """The Command Field: one of :class:`CommandField`, or what else the peer sent."""
        return self._number("CommandField")

    @property
    def is_response(self) -> bool:
        """Whether it is a response."""
        return bool(self.field & RESPONSE)

    @property
    def has_dataset(self) -> bool:
        """Whether a dataset follows."""
        return self._number("CommandDataSetType") != NO_DATASET

    @property
    def message_id(self) -> int:
        """The Message ID of a request."""
        return self._number("MessageID")

    @property
    def responded_to(self) -> int:
        """The Message ID Being Responded To, of a response or a C-CANCEL."""
        return self._number("MessageIDBeingRespondedTo")

    @property
    def status(self) -> int:
        """The status of a response."""
        return self._number("Status")

    @property
    def sop_class_uid(self) -> str:
        """The Affected SOP Class UID, or the Requested one in the requests that have it so."""
        return self._text("RequestedSOPClassUID" if self.get("CommandField") in _REQUESTED else "AffectedSOPClassUID")

    @property
    def sop_instance_uid(self) -> str:
        """The Affected SOP Instance UID, or the Requested one in the requests that have it so."""
        return self._text("RequestedSOPInstanceUID" if self.get("CommandField") in _REQUESTED else "AffectedSOPInstanceUID")

    def __repr__(self) -> str:
        # Neither AE titles nor comments, both the peer's words: a repr ends up in logs.
        shown = [f"{key}={self[key]}" for key in ("MessageID", "MessageIDBeingRespondedTo") if key in self]
        if isinstance(self.get("Status"), int):
            shown.append(f"Status=0x{self['Status']:04X}")
        return f"<{' '.join([self.name, *shown])}>"


def request(field: CommandField, message_id: int, sop_class_uid: str, *, dataset: bool, **elements: Any) -> Command:
    """Make the command set of a request (PS3.7 sections 9.3 and 10.3).

    :param dataset: whether a dataset follows
    :param elements: further elements by keyword; those that are None are left out
    :raises DatasetError: when it would name a SOP class or an instance by what is no UID (PS3.5 section 9.1)
    """
    requested = field in _REQUESTED
    command = Command(CommandField=int(field), MessageID=message_id)
    command["RequestedSOPClassUID" if requested else "AffectedSOPClassUID"] = sop_class_uid
    if field in _WITH_PRIORITY:
        command["Priority"] = PRIORITY_MEDIUM
    command["CommandDataSetType"] = WITH_DATASET if dataset else NO_DATASET
    command.update((keyword, value) for keyword, value in elements.items() if value is not None)
    for uid in (sop_class_uid, command.get("RequestedSOPInstanceUID" if requested else "AffectedSOPInstanceUID")):
        if uid is not None and not 0 < len(uid) <= MAX_UID_LENGTH:
            raise DatasetError(f"{command.name}: a UID of {len(uid)} characters, it has 1 to {MAX_UID_LENGTH}")
    return command


def response(to: Command, status: int, *, dataset: bool = False, **elements: Any) -> Command:
    """Make the command set of the response to a request.

    The SOP class and, where the request names one, the SOP instance come from the request, unless they are too long for UIDs.

    :param to: the request
    :param status: the DIMSE status
    :param dataset: whether a dataset follows
    :param elements: further elements by keyword; those that are None are left out
    :raises ProtocolError: when the request has no command field or no message ID
    """
    field = to.field
    command = Command(
        CommandField=field | RESPONSE,
        MessageIDBeingRespondedTo=to.message_id,
        CommandDataSetType=WITH_DATASET if dataset else NO_DATASET,
        Status=status,
    )
    prefix = "Requested" if field in _REQUESTED else "Affected"
    for name in ("SOPClassUID",) if field in _WITHOUT_INSTANCE else ("SOPClassUID", "SOPInstanceUID"):
        value = to.get(prefix + name)
        if value and len(value) <= MAX_UID_LENGTH:
            command["Affected" + name] = value
    command.update((keyword, value) for keyword, value in elements.items() if value is not None)
    return command


def cancel(message_id: int) -> Command:
    """Make the command set of a C-CANCEL-RQ (PS3.7 section 9.3.2.3).

    :param message_id: the Message ID of the C-FIND, C-MOVE or C-GET to cancel
    """
    return Command(
        CommandField=int(CommandField.C_CANCEL_RQ), MessageIDBeingRespondedTo=message_id, CommandDataSetType=NO_DATASET
    )


def encode_command(command: dict[str, Any]) -> bytes:
    """Encode a command set with its group length, elements in ascending order (PS3.7 section 6.3.1).

    :param command: keyword to value; the group length is computed
    :raises ValueError: when a keyword does not exist or a value does not fit its element
    """
    parts: list[tuple[int, bytes]] = []
    for keyword, value in command.items():
        try:
            element, vr = _ELEMENTS[keyword]
        except KeyError:
            if keyword == "CommandGroupLength":
                continue
            raise ValueError(f"{keyword} is not an element of a command set (PS3.7 Table E.1-1)") from None
        try:
            if vr == "US":
                parts.append((element, _US.pack(0, element, 2, value)))
            elif vr == "AT":
                tags = (value,) if isinstance(value, int) else value
                body = struct.pack(f"<{2 * len(tags)}H", *(half for tag in tags for half in (tag >> 16, tag & 0xFFFF)))
                parts.append((element, _ELEMENT.pack(0, element, len(body)) + body))
            else:
                # Latin-1 gives back exactly the bytes that decode_command was given, whatever they were.
                body = (value.strip(" \0") if vr == "UI" else value).encode("latin-1")
                if len(body) & 1:
                    body += b"\0" if vr == "UI" else b" "
                parts.append((element, _ELEMENT.pack(0, element, len(body)) + body))
        except (struct.error, AttributeError, TypeError, UnicodeEncodeError) as error:
            raise ValueError(f"{keyword} = {value!r}: {error}") from None
    parts.sort()
    body = b"".join([part for _, part in parts])
    return _GROUP_LENGTH.pack(0, 0, 4, len(body)) + body


def decode_command(encoded: bytes | bytearray | memoryview) -> Command:
    """Decode a command set.

    Elements that PS3.7 does not know, and empty ones, are left out. The group length is not compared: some peers get it
    wrong, and the fragments say where the command set ends.

    :raises ProtocolError: when it is no command set
    """
    data = bytes(encoded)
    command = Command()
    at, end = 0, len(data)
    while at < end:
        if end - at < 8:
            raise ProtocolError("the command set ends inside an element")
        group, element, length = _ELEMENT.unpack_from(data, at)
        at += 8
        stop = at + length
        if group != 0 or stop > end:
            raise ProtocolError(f"element ({group:04X},{element:04X}) of {length} bytes does not belong in a command set")
        known = _KEYWORDS.get(element)
        if known is not None and length:
            keyword, vr = known
            if vr == "US":
                if length != 2:
                    raise ProtocolError(f"{keyword} has {length} bytes, it has 2")
                command[keyword] = data[at] | data[at + 1] << 8
            elif vr == "AT":
                if length & 3:
                    raise ProtocolError(f"{keyword} has {length} bytes, a tag has 4")
                halves = struct.unpack_from(f"<{length // 2}H", data, at)
                command[keyword] = tuple(high << 16 | low for high, low in zip(halves[::2], halves[1::2], strict=True))
            else:
                command[keyword] = data[at:stop].decode("latin-1").strip(" \0")
        at = stop
    if "CommandField" not in command or "CommandDataSetType" not in command:
        raise ProtocolError("the command set lacks its Command Field or its Command Data Set Type")
    return command


@dataclass(frozen=True, slots=True)
class Message:
    """A whole DIMSE message.

    :ivar context_id: the presentation context that it came on
    :ivar command: its command set
    :ivar data: its dataset as received; None when it has none. What :meth:`MessageReader.take` took is not in it
    :ivar parts: its dataset in the parts that it came in, in place of `data`, from a reader that does not join them
    """

    context_id: int
    command: Command
    data: bytes | bytearray | memoryview | None
    parts: tuple[bytearray | memoryview, ...] = ()

    def __repr__(self) -> str:
        size = "no dataset" if self.data is None else f"dataset of {len(self.data)} bytes"
        if self.parts:
            size = f"dataset of {sum(len(part) for part in self.parts)} bytes"
        return f"<Message {self.command!r}, {size}, context {self.context_id}>"


class MessageReader:
    """Puts messages together from their fragments.

    Messages do not interleave (PS3.7 section 6.3.1): there is one under way at most. A dataset in one fragment is handed out as
    a view, without a copy; one in several is copied once. To stream a large one, look at :attr:`command` and
    :attr:`held` after each fragment and :meth:`take` the fragments that came.

    :param max_size: the largest dataset that is taken, in bytes; parts that were taken away count
    :param joins: whether a dataset in several parts is joined
    """

    __slots__ = ("_command_bytes", "_joins", "_parts", "command", "context_id", "held", "max_size", "size")

    def __init__(self, max_size: int, *, joins: bool = True) -> None:
        self.max_size = max_size
        self._joins = joins
        #: The command set of the message under way, once it is whole; its dataset is still to come.
        self.command: Command | None = None
        #: The presentation context of the message under way; 0 between messages.
        self.context_id = 0
        #: Bytes of the dataset under way that have arrived, taken ones included.
        self.size = 0
        #: Bytes of the dataset under way that are held here.
        self.held = 0
        self._command_bytes = bytearray()
        self._parts: list[bytearray | memoryview] = []

    @property
    def inside_message(self) -> bool:
        """Whether the peer is in the middle of a message."""
        return self.context_id != 0

    def take(self) -> list[bytearray | memoryview]:
        """Take away what is held of the dataset under way; :attr:`Message.data` will be what came after it."""
        parts, self._parts = self._parts, []
        self.held = 0
        return parts

    def receive(self, pdv: PDV) -> Message | None:
        """Add a fragment.

        :return: the message that it completes, if it does
        :raises ProtocolError: when the fragment is out of turn, or the message is beyond the cap
        """
        if not self.context_id:
            self.context_id = pdv.context_id
        elif pdv.context_id != self.context_id:
            raise ProtocolError(f"fragment on context {pdv.context_id} inside a message on context {self.context_id}")
        if pdv.is_command:
            return self._receive_command(pdv)
        if self.command is None:
            raise ProtocolError("fragment of a dataset without a command set before it")
        return self._receive_data(self.command, pdv)

    def _receive_command(self, pdv: PDV) -> Message | None:
        if self.command is not None:
            raise ProtocolError(f"fragment of a command set where the dataset of {self.command.name} is due")
        if len(self._command_bytes) + len(pdv.data) > MAX_COMMAND_LENGTH:
            raise ProtocolError(f"command set of more than {MAX_COMMAND_LENGTH} bytes")
        if pdv.is_last and not self._command_bytes:
            command = decode_command(pdv.data)
        else:
            self._command_bytes += pdv.data
            if not pdv.is_last:
                return None
            command = decode_command(self._command_bytes)
            self._command_bytes = bytearray()
        if command.has_dataset:
            self.command = command
            return None
        return self._complete(command, None)

    def _receive_data(self, command: Command, pdv: PDV) -> Message | None:
        data = pdv.data
        self.size += len(data)
        if self.size > self.max_size:
            raise ProtocolError(f"the dataset of {command.name} is larger than {self.max_size} bytes")
        self._keep(data)
        if not pdv.is_last:
            return None
        parts = self.take()
        if len(parts) == 1:
            return self._complete(command, parts[0])
        return self._complete(command, b"".join(parts)) if self._joins else self._complete(command, None, tuple(parts))

    def _keep(self, data: memoryview) -> None:
        self.held += len(data)
        parts = self._parts
        if self.held <= _JOINED_ONCE and _SHARE * len(data) >= memoryview(data.obj).nbytes:
            # A view keeps alive all that was read with it, so it must be a good part of that.
            parts.append(data)
        elif parts and isinstance(parts[-1], bytearray):
            parts[-1] += data
        elif self.held > _JOINED_ONCE:
            self._parts = [bytearray().join([*parts, data])]
        else:
            parts.append(bytearray(data))

    def _complete(
        self,
        command: Command,
        data: bytes | bytearray | memoryview | None,
        parts: tuple[bytearray | memoryview, ...] = (),
    ) -> Message:
        message = Message(self.context_id, command, data, parts)
        self.command = None
        self.context_id = 0
        self.size = 0
        return message

    def __repr__(self) -> str:
        if not self.inside_message:
            return "<MessageReader, between messages>"
        name = "a command set" if self.command is None else f"the dataset of {self.command.name}"
        return f"<MessageReader, inside {name}, {self.size} bytes, context {self.context_id}>"
