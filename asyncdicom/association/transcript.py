"""What was said on the wire, in words: for whoever asks why a peer does what it does. No dataset is shown, nor kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

from pydicom.uid import UID_dictionary

from asyncdicom.errors import AssociationRejected, ProtocolError
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.message import decode_command
from asyncdicom.upper_layer.pdu import PDU, PDUReader, PDUType

# What is listened to on each side, in bytes: negotiation and commands are short, and datasets are not wanted.
_HEARD = 4 << 20
_MOST_LINES = 500
_COMMAND = 64 << 10
# PS3.8 Table 9-18.
_RESULTS = {
    0: "accepted",
    1: "user rejection",
    2: "no reason given",
    3: "abstract syntax not supported",
    4: "transfer syntaxes not supported",
}
# PS3.8 Table 9-26.
_ABORTS = {
    0: "no reason given",
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized parameter",
    5: "unexpected parameter",
    6: "invalid parameter value",
}

_CURRENT: ContextVar[Transcript | None] = ContextVar("transcript", default=None)


class Transcript:
    """Writes down what is said over the associations of engine ``native`` that begin while it is :meth:`current`."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._started = time.monotonic()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the associations that this task, and those that it starts, ask for."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    @property
    def lines(self) -> tuple[str, ...]:
        """What was said, one PDU or message a line."""
        return tuple(self._lines)

    def note(self, text: str) -> None:
        """Write a line, with the time since the beginning."""
        if len(self._lines) == _MOST_LINES:
            self._lines.append("what follows is left out")
        elif len(self._lines) < _MOST_LINES:
            self._lines.append(f"{time.monotonic() - self._started:8.3f} s  {text}")


class Overheard:
    """One association, both ways."""

    def __init__(self, transcript: Transcript) -> None:
        self._ours = _Side(transcript, "->")
        self._theirs = _Side(transcript, "<-")

    def sent(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes of ours."""
        self._ours.hear(data)

    def received(self, data: bytes) -> None:
        """Bytes of the peer's."""
        self._theirs.hear(data)


def overhear() -> Overheard | None:
    """What listens to an association that begins now; None, as good as always."""
    transcript = _CURRENT.get()
    return None if transcript is None else Overheard(transcript)


class _Side:
    """What one of the two says."""

    def __init__(self, transcript: Transcript, arrow: str) -> None:
        self._transcript = transcript
        self._arrow = arrow
        self._frames = PDUReader(1 << 32)
        self._heard = 0
        self._command = bytearray()
        self._dataset = 0

    def hear(self, data: bytes | bytearray | memoryview) -> None:
        if self._heard > _HEARD:
            return
        self._heard += len(data)
        try:
            self._frames.feed(data)
            for found in self._frames:
                self._tell(found)
        except ProtocolError as error:
            self._say(f"{len(data)} bytes that are no DICOM: {error.detail}")
            self._heard = _HEARD + 1

    def _say(self, text: str) -> None:
        self._transcript.note(f"{self._arrow} {text}")

    def _tell(self, found: PDU) -> None:
        kind = found.type
        if kind == PDUType.ASSOCIATE_RQ:
            request = negotiation.decode_request(found.body)
            self._say(f"{found.name} {request.calling_ae_title!a} calls {request.called_ae_title!a}, {_limits(request)}")
            for context in request.contexts:
                syntaxes = ", ".join(_name(uid) for uid in context.transfer_syntaxes)
                self._say(f"   context {context.context_id}: {_name(context.abstract_syntax)} in {syntaxes}")
        elif kind == PDUType.ASSOCIATE_AC:
            accept = negotiation.decode_accept(found.body)
            self._say(f"{found.name} {_limits(accept)}")
            for result in accept.contexts:
                said = _name(result.transfer_syntax) if not result.result else _RESULTS.get(result.result, str(result.result))
                self._say(f"   context {result.context_id}: {'accepted in ' if not result.result else ''}{said}")
        elif kind == PDUType.ASSOCIATE_RJ:
            try:
                raise pdu.decode_reject(found.body)
            except AssociationRejected as rejected:
                numbers = f"result {rejected.result}, source {rejected.source}, reason {rejected.diagnostic}"
                self._say(f"{found.name} {numbers}: {rejected.detail}")
        elif kind == PDUType.ABORT:
            aborted = pdu.decode_abort(found.body)
            who = "service user" if aborted.source == pdu.AbortSource.SERVICE_USER else "service provider"
            self._say(f"{found.name} by the {who}: {_ABORTS.get(aborted.diagnostic or 0, 'a reason that does not exist')}")
        elif kind == PDUType.DATA_TF:
            for value in pdu.decode_data(found.body):
                self._fragment(value)
        else:
            self._say(found.name)

    def _fragment(self, value: pdu.PDV) -> None:
        if not value.is_command:
            self._dataset += len(value.data)
            if value.is_last:
                self._say(f"   its dataset, {self._dataset} bytes (not shown)")
                self._dataset = 0
            return
        if len(self._command) < _COMMAND:
            self._command += value.data
        if value.is_last:
            encoded, self._command = bytes(self._command), bytearray()
            command = decode_command(encoded)
            parts = [f"{command.name} on context {value.context_id}"]
            number = command.get("MessageID", command.get("MessageIDBeingRespondedTo"))
            if number is not None:
                parts.append(f"message {number}")
            if "Status" in command:
                parts.append(f"status 0x{command['Status']:04X}")
            # Neither the comment nor the names of instances: both are the peer's, and may speak of a patient.
            self._say(", ".join(parts))


def _limits(said: negotiation.AssociateRequest | negotiation.AssociateAccept) -> str:
    version = f" {said.implementation_version!a}" if said.implementation_version else ""
    return f"maximum length {said.max_length}, implementation {said.implementation_class_uid or 'unnamed'!a}{version}"


def _name(uid: str) -> str:
    known = UID_dictionary.get(uid)
    return f"{uid} ({known[0]})" if known is not None else f"{uid!a}"
