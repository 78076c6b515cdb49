"""Protocol data units of the upper layer: framing, caps, and the PDUs that have no negotiation in them (PS3.8 section 9.3).

Bytes that arrive go into a :class:`PDUReader` and come out as whole PDUs. Type and length are judged on the six bytes of
the header, before anything of the body is kept: what a peer claims never decides how much memory it gets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from asyncdicom.errors import AssociationAborted, AssociationRejected, ProtocolError

HEADER_LENGTH = 6
# PDU header, PDV length, presentation context ID and message control header of a P-DATA-TF with one PDV.
DATA_HEADER_LENGTH = 12
# A full A-ASSOCIATE-RQ of 128 contexts has some 50 KiB; the rest is room for tokens of user identity.
MAX_ASSOCIATE_LENGTH = 1 << 20
# What we cut our own fragments to for a peer that sets no limit: larger ones gain nothing and cost both sides memory.
UNLIMITED_FRAGMENT_LENGTH = 131_072

_HEADER = struct.Struct(">BxI")
_DATA_HEADER = struct.Struct(">BxIIBB")
_PDV_HEADER = struct.Struct(">IBB")


class PDUType(IntEnum):
    """PDU types (PS3.8 section 9.3.1)."""

    ASSOCIATE_RQ = 0x01
    ASSOCIATE_AC = 0x02
    ASSOCIATE_RJ = 0x03
    DATA_TF = 0x04
    RELEASE_RQ = 0x05
    RELEASE_RP = 0x06
    ABORT = 0x07


_NAMES = {
    0x01: "A-ASSOCIATE-RQ",
    0x02: "A-ASSOCIATE-AC",
    0x03: "A-ASSOCIATE-RJ",
    0x04: "P-DATA-TF",
    0x05: "A-RELEASE-RQ",
    0x06: "A-RELEASE-RP",
    0x07: "A-ABORT",
}


class AbortSource(IntEnum):
    """Who aborts (PS3.8 Table 9-26)."""

    SERVICE_USER = 0
    SERVICE_PROVIDER = 2


class AbortReason(IntEnum):
    """Why the provider aborts (PS3.8 Table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class PDUError(ProtocolError):
    """A PDU that is refused (PS3.8 section 9.2.3).

    :param detail: what is wrong with it
    :param abort_reason: what an A-ABORT says of it
    """

    def __init__(self, detail: str, abort_reason: AbortReason = AbortReason.INVALID_PARAMETER) -> None:
        super().__init__(detail)
        self.abort_reason = abort_reason


class PDU(NamedTuple):
    """A whole PDU.

    :ivar type: one of :class:`PDUType`, as the plain number it came as
    :ivar body: what follows the header; read-only, and valid for as long as it is held
    """

    type: int
    body: memoryview

    @property
    def name(self) -> str:
        """The standard's name of its type."""
        return _NAMES[self.type]

    def __repr__(self) -> str:
        # Never the body: a repr ends up in logs.
        return f"<{self.name} of {len(self.body)} bytes>"


class PDV(NamedTuple):
    """A presentation data value: one fragment of a message (PS3.8 section 9.3.5.1 and Annex E).

    :ivar context_id: the presentation context
    :ivar is_command: whether the fragment belongs to a command set, not to a dataset
    :ivar is_last: whether it is the last fragment of it
    :ivar data: the fragment, a view into the PDU
    """

    context_id: int
    is_command: bool
    is_last: bool
    data: memoryview

    def __repr__(self) -> str:
        kind = "command" if self.is_command else "dataset"
        return f"<PDV {'last ' if self.is_last else ''}{kind} of {len(self.data)} bytes, context {self.context_id}>"


_NOTHING = memoryview(b"")


class PDUReader:
    """Cuts a stream of bytes into PDUs.

    ``bytes`` are taken without a copy and PDUs that lie whole within them come out as views; only a PDU that spans two
    calls of :meth:`feed` is put together, and it grows by what arrives, never by what its header announces.

    Ask either for whole PDUs, :meth:`next_pdu`, or with :meth:`next_item` for fragments as they arrive, which copies nothing.

    :param max_data_length: the maximum length that we announced for a P-DATA-TF, in bytes (PS3.8 D.1)
    """

    __slots__ = ("_at", "_context_id", "_control", "_partial", "_pdu_left", "_pdv_left", "_view", "max_data_length")

    def __init__(self, max_data_length: int) -> None:
        self.max_data_length = max_data_length
        self._view = _NOTHING
        self._at = 0
        self._partial = bytearray()
        # Of the P-DATA-TF whose fragments are being given out: bytes to come, and those of the fragment under way.
        self._pdu_left = 0
        self._pdv_left = 0
        self._context_id = 0
        self._control = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes as they came from the peer.

        Call :meth:`next_pdu` until it answers None before feeding more: what is then left over is less than one PDU.

        :param data: ``bytes`` are kept by reference; anything mutable is copied, so that its owner may reuse it
        """
        if self._at < len(self._view):
            data = b"".join((self._view[self._at :], data))
        elif not isinstance(data, bytes):
            data = bytes(data)
        self._view = memoryview(data)
        self._at = 0

    def next_pdu(self) -> PDU | None:
        """Return the next whole PDU, None when more bytes are needed.

        :raises PDUError: when the header has an unknown type or a length beyond the cap of its type
        """
        view, at = self._view, self._at
        available = len(view) - at
        if self._partial:
            return self._continue(view, at, available)
        if not available:
            return None
        if available >= HEADER_LENGTH:
            pdu_type, length = _HEADER.unpack_from(view, at)
            self._check(pdu_type, length)
            end = at + HEADER_LENGTH + length
            if end <= len(view):
                self._at = end
                return PDU(pdu_type, view[at + HEADER_LENGTH : end])
        else:
            self._check_type(view[at])
        self._keep(view, at, available)
        return None

    def next_item(self) -> PDU | PDV | None:
        """Return what is next: of a P-DATA-TF its fragments, else the whole PDU; None when more bytes are needed.

        A fragment of which only a part is here comes in parts; all but the last say that they are not the last. Where a
        message is cut into fragments means nothing (PS3.8 Annex E), so whoever puts it together need not know.

        :raises PDUError: when the header has an unknown type or a length beyond the cap of its type, or a fragment does
            not fit
        """
        while True:
            view, at = self._view, self._at
            available = len(view) - at
            if not available:
                # Let the chunk go: its last views may be gone already.
                self._view, self._at = _NOTHING, 0
                return None
            if self._pdv_left:
                taken = min(available, self._pdv_left)
                self._at = at + taken
                self._pdv_left -= taken
                self._pdu_left -= taken
                control = self._control
                return PDV(self._context_id, bool(control & 1), bool(control & 2) and not self._pdv_left, view[at : at + taken])
            if self._pdu_left:
                if self._pdu_left < HEADER_LENGTH:
                    raise PDUError("P-DATA-TF ends inside the header of a presentation data value")
                if available < HEADER_LENGTH:
                    self._wait_for_header(view, at)
                    return None
                length, self._context_id, self._control = _PDV_HEADER.unpack_from(view, at)
                self._at = at + HEADER_LENGTH
                self._pdu_left -= HEADER_LENGTH
                _check_fragment(length, self._context_id, self._pdu_left + 2)
                self._pdv_left = length - 2
                if not self._pdv_left:
                    return PDV(self._context_id, bool(self._control & 1), bool(self._control & 2), view[:0])
                continue
            if self._partial or view[at] != PDUType.DATA_TF:
                return self.next_pdu()
            if available < HEADER_LENGTH:
                self._wait_for_header(view, at)
                return None
            _, length = _HEADER.unpack_from(view, at)
            self._check(PDUType.DATA_TF, length)
            if not length:
                raise PDUError("P-DATA-TF without a presentation data value")
            self._at = at + HEADER_LENGTH
            self._pdu_left = length

    def _wait_for_header(self, view: memoryview, at: int) -> None:
        # A copy of these few bytes: a view of them would hold all that was read with them.
        self._view, self._at = memoryview(bytes(view[at:])), 0

    def __iter__(self) -> Iterator[PDU]:
        """Yield the whole PDUs that are there."""
        while (pdu := self.next_pdu()) is not None:
            yield pdu

    @property
    def pending(self) -> int:
        """Bytes held that are not yet given out."""
        return len(self._partial) + len(self._view) - self._at

    @property
    def inside_pdu(self) -> bool:
        """Whether the peer has sent a part of a PDU and owes the rest; known once :meth:`next_pdu` has answered None."""
        return bool(self._partial or self._pdu_left or self._at < len(self._view))

    def _continue(self, view: memoryview, at: int, available: int) -> PDU | None:
        partial = self._partial
        if len(partial) < HEADER_LENGTH:
            taken = min(HEADER_LENGTH - len(partial), available)
            partial += view[at : at + taken]
            at += taken
            available -= taken
            if len(partial) < HEADER_LENGTH:
                self._keep(view, at, 0)
                return None
            self._check(*_HEADER.unpack_from(partial))
        pdu_type, length = _HEADER.unpack_from(partial)
        missing = HEADER_LENGTH + length - len(partial)
        if available < missing:
            self._keep(view, at, available)
            return None
        partial += view[at : at + missing]
        self._at = at + missing
        self._partial = bytearray()
        return PDU(pdu_type, memoryview(partial).toreadonly()[HEADER_LENGTH:])

    def _keep(self, view: memoryview, at: int, available: int) -> None:
        if available:
            self._partial += view[at : at + available]
        # Let the chunk go: a view of its last bytes would hold all of it.
        self._view, self._at = _NOTHING, 0

    def _check(self, pdu_type: int, length: int) -> None:
        self._check_type(pdu_type)
        if pdu_type == PDUType.DATA_TF:
            if length > self.max_data_length:
                raise PDUError(f"P-DATA-TF of {length} bytes, {self.max_data_length} were announced as the maximum")
        elif pdu_type <= PDUType.ASSOCIATE_AC:
            if length > MAX_ASSOCIATE_LENGTH:
                raise PDUError(f"{_NAMES[pdu_type]} of {length} bytes, at most {MAX_ASSOCIATE_LENGTH} are taken")
        elif length != 4:
            raise PDUError(f"{_NAMES[pdu_type]} of {length} bytes, it has 4")

    @staticmethod
    def _check_type(pdu_type: int) -> None:
        if not PDUType.ASSOCIATE_RQ <= pdu_type <= PDUType.ABORT:
            detail = f"PDU type 0x{pdu_type:02X} does not exist: the peer does not speak DICOM"
            raise PDUError(detail, AbortReason.UNRECOGNIZED_PDU)

    def __repr__(self) -> str:
        return f"<PDUReader, {self.pending} bytes pending, P-DATA-TF up to {self.max_data_length}>"


def decode_data(body: memoryview) -> Iterator[PDV]:
    """Yield the presentation data values of a P-DATA-TF (PS3.8 section 9.3.5).

    :param body: the PDU without its header
    :raises PDUError: when an item does not fit, there is none, or a context ID is even
    """
    at, end = 0, len(body)
    if not end:
        raise PDUError("P-DATA-TF without a presentation data value")
    while at < end:
        if end - at < HEADER_LENGTH:
            raise PDUError("P-DATA-TF ends inside the header of a presentation data value")
        length, context_id, control = _PDV_HEADER.unpack_from(body, at)
        stop = at + 4 + length
        _check_fragment(length, context_id, end - at - 4)
        # Only the two lowest bits of the control header are defined; the others are not tested (PS3.8 E.2).
        yield PDV(context_id, bool(control & 1), bool(control & 2), body[at + 6 : stop])
        at = stop


def _check_fragment(length: int, context_id: int, left: int) -> None:
    if not 2 <= length <= left or 0 < left - length < HEADER_LENGTH:
        raise PDUError(f"presentation data value of {length} bytes where {left} are left")
    if not context_id & 1:
        raise PDUError(f"presentation context ID {context_id} is even")


def decode_reject(body: memoryview) -> AssociationRejected:
    """Return what an A-ASSOCIATE-RJ says, as the error to raise (PS3.8 section 9.3.4)."""
    return AssociationRejected(body[1], body[2], body[3])


_ABORT_WORDS = {
    0: "no reason given",
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}


def decode_abort(body: memoryview) -> AssociationAborted:
    """Return what an A-ABORT says, as the error to raise (PS3.8 section 9.3.8)."""
    source, reason = body[2], body[3]
    # The reason is not significant when the service user aborts (PS3.8 Table 9-26).
    if source == AbortSource.SERVICE_USER:
        return AssociationAborted("aborted by the peer", source=source, diagnostic=None)
    words = _ABORT_WORDS.get(reason, f"reason {reason}")
    return AssociationAborted(f"aborted by the peer's service provider: {words}", source=source, diagnostic=reason)


def encode_pdu(pdu_type: int, body: bytes) -> bytes:
    """Put the header before a body."""
    return _HEADER.pack(pdu_type, len(body)) + body


def encode_reject(result: int, source: int, diagnostic: int) -> bytes:
    """Encode an A-ASSOCIATE-RJ (PS3.8 section 9.3.4).

    :param result: 1 permanent, 2 transient
    :param source: 1 service user, 2 provider (ACSE), 3 provider (presentation)
    :param diagnostic: the reason/diagnostic of PS3.8 Table 9-21
    """
    return bytes((PDUType.ASSOCIATE_RJ, 0, 0, 0, 0, 4, 0, result, source, diagnostic))


def encode_release_rq() -> bytes:
    """Encode an A-RELEASE-RQ (PS3.8 section 9.3.6)."""
    return b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"


def encode_release_rp() -> bytes:
    """Encode an A-RELEASE-RP (PS3.8 section 9.3.7)."""
    return b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"


def encode_abort(source: int = AbortSource.SERVICE_USER, reason: int = AbortReason.NOT_SPECIFIED) -> bytes:
    """Encode an A-ABORT (PS3.8 section 9.3.8)."""
    return bytes((PDUType.ABORT, 0, 0, 0, 0, 4, 0, 0, source, reason))


def data_header(context_id: int, length: int, *, command: bool, last: bool) -> bytes:
    """Encode what stands before a fragment that is sent as the one PDV of a P-DATA-TF.

    :param length: bytes of the fragment
    """
    return _DATA_HEADER.pack(PDUType.DATA_TF, length + 6, length + 2, context_id, command | last << 1)


def fragment_length(max_length: int) -> int:
    """Return how many bytes of a message fit into one P-DATA-TF for a peer.

    :param max_length: the maximum length that the peer announced, in bytes; 0 means that it sets none (PS3.8 D.1.1)
    :raises ProtocolError: when not even two bytes fit
    """
    # Fragments other than the last have an even length: some peers decode them as they come.
    fitting = ((max_length or UNLIMITED_FRAGMENT_LENGTH) - 6) & ~1
    if fitting < 2:
        raise ProtocolError(f"the peer announced a maximum PDU length of {max_length} bytes, too short for any message")
    return fitting


def encode_data(
    context_id: int, data: bytes | bytearray | memoryview, *, command: bool, max_length: int
) -> Iterator[bytes | memoryview]:
    """Yield a command set or a dataset as P-DATA-TF PDUs: a header and a view of ``data`` in turn, nothing copied.

    An empty ``data`` gives one empty last fragment: a peer that was promised a dataset waits for it.

    :param max_length: the maximum length that the peer announced, in bytes; 0 for none
    :raises ProtocolError: when the peer's maximum leaves no room for a fragment
    """
    size = fragment_length(max_length)
    view = memoryview(data)
    total = len(view)
    for at in range(0, total or 1, size):
        fragment = view[at : at + size]
        yield data_header(context_id, len(fragment), command=command, last=at + size >= total)
        yield fragment


def encode_message(
    context_id: int, command: bytes, dataset: bytes | bytearray | memoryview | None = None, *, max_length: int
) -> bytes:
    """Encode a whole message, command set and dataset, as P-DATA-TF PDUs; for messages small enough to be copied.

    :param command: the encoded command set
    :param dataset: the encoded dataset; None when the message has none
    :raises ProtocolError: when the peer's maximum leaves no room for a fragment
    """
    parts = list(encode_data(context_id, command, command=True, max_length=max_length))
    if dataset is not None:
        parts += encode_data(context_id, dataset, command=False, max_length=max_length)
    return b"".join(parts)
