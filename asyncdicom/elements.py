"""The elements of an encoded dataset, walked without decoding them (PS3.5 section 7.1).

Every instance that is stored, sent or merged passes here, so the walk is written by hand: it looks at headers alone, copies
nothing but the values it wants, and stops at the end of them. pydicom's generator does the same at four times the cost,
recurses into nested sequences, and cannot tell a truncated dataset from a short one. The tests hold it against pydicom.
"""

from __future__ import annotations

import struct
import zlib

from pydicom.charset import convert_encodings, decode_bytes, python_encoding

from asyncdicom.errors import DatasetError
from asyncdicom.upper_layer import context as uid

Buffer = bytes | bytearray | memoryview

# PS3.5 section 7.1.2: these have a length of 16 bits, those of 32 after two reserved bytes.
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
# PS3.5 section 7.5
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD

# PS3.5 section A.5 and the JPIP syntaxes of A.6 to A.7: the whole dataset is deflated.
DEFLATED = frozenset({uid.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

# What is wanted lies in the first kilobytes of an honest dataset. Beyond these a walk is an attack, or hopeless.
_MAX_ELEMENTS = 250_000
_MAX_VALUE = 1024
_INFLATE_FIRST = 1 << 16
_INFLATE_LAST = 4 << 20
_INFLATE_SLICE = 1 << 16
# What anybody may inflate to, in bytes, who does not say more: a query's answer is kilobytes.
MAX_INFLATED = 4 << 20

_EXPLICIT = {little: struct.Struct("<HH2sH" if little else ">HH2sH").unpack_from for little in (True, False)}
_IMPLICIT = {little: struct.Struct("<HHL" if little else ">HHL").unpack_from for little in (True, False)}
_LENGTH = {little: struct.Struct("<L" if little else ">L").unpack_from for little in (True, False)}


class Truncated(DatasetError):
    """The bytes end before the elements do."""


def walk(
    data: Buffer, transfer_syntax_uid: str, wanted: frozenset[int], *, last: int | None = None, is_whole: bool = True
) -> dict[int, bytes]:
    """Walk over the elements of a dataset that came without File Meta Information, and return the values of some.

    :param data: the dataset as it is encoded; not copied
    :param wanted: the tags whose values to return; values are cut at 1 KiB
    :param last: the walk stops at the first tag above this one; by default the highest that is wanted
    :param is_whole: whether this is all of the dataset, and not its beginning
    :raises Truncated: when the bytes end inside an element, or before `last` when they are not all
    :raises DatasetError: when it cannot be walked up to there
    """
    last = max(wanted) if last is None else last
    if transfer_syntax_uid in DEFLATED:
        return _walk_deflated(memoryview(data), wanted, last)
    return scan(
        memoryview(data),
        explicit=transfer_syntax_uid != uid.IMPLICIT_VR_LITTLE_ENDIAN,
        little_endian=transfer_syntax_uid != uid.EXPLICIT_VR_BIG_ENDIAN,
        wanted=wanted,
        last=last,
        is_whole=is_whole,
    )


def scan(
    data: memoryview,
    *,
    explicit: bool,
    little_endian: bool,
    wanted: frozenset[int],
    last: int,
    is_whole: bool = True,
) -> dict[int, bytes]:
    """Walk over the elements of a dataset (PS3.5 section 7.1) and return the values of some.

    :param explicit: whether the transfer syntax says explicit VR; the first element decides when it says otherwise
    :param wanted: the tags whose values to return; values are cut at 1 KiB
    :param last: the walk stops at the first tag above this one
    :param is_whole: whether the end of the bytes is that of the dataset, so that the walk may stop there
    :raises DatasetError: when the bytes end inside an element, or there are too many elements
    """
    end = len(data)
    at = 0
    values: dict[int, bytes] = {}
    # The sequences of undefined length that we are inside of: what to go back to at the end of each. A list in place of
    # recursion, because a peer chooses the depth.
    inside: list[tuple[bool, bool]] = []
    if end >= 8:
        explicit = bytes(data[4:6]) in _SHORT or bytes(data[4:6]) in _LONG
    header = _EXPLICIT[little_endian]
    implicit_header = _IMPLICIT[little_endian]
    try:
        for _ in range(_MAX_ELEMENTS):
            if at == end:
                if not is_whole:
                    raise Truncated(f"the bytes end before element {last:08X}")
                return values
            vr = b""
            if explicit:
                group, element, vr, length = header(data, at)
                if vr in _SHORT:
                    at += 8
                elif vr in _LONG or (_is_vr(vr) and length == 0):
                    # A VR that is not known has the long form, when it has one (PS3.5 section 7.1.2).
                    (length,) = _LENGTH[little_endian](data, at + 8)
                    at += 12
                elif group == 0xFFFE or not _is_vr(vr):
                    # Items never have a VR; some writers switch to implicit VR in the middle.
                    group, element, length = implicit_header(data, at)
                    at += 8
                else:
                    at += 8
            else:
                group, element, length = implicit_header(data, at)
                at += 8
            tag = group << 16 | element
            if inside:
                if tag == _SEQUENCE_END:
                    explicit, little_endian = inside.pop()
                    header, implicit_header = _EXPLICIT[little_endian], _IMPLICIT[little_endian]
                    continue
                if tag == _ITEM_END or (tag == _ITEM and length == _UNDEFINED):
                    continue
            elif tag > last:
                return values
            if length == _UNDEFINED:
                inside.append((explicit, little_endian))
                if vr == b"UN":
                    # PS3.5 section 6.2.2 note 2: what is inside is implicit VR little endian.
                    explicit, little_endian = False, True
                    header, implicit_header = _EXPLICIT[True], _IMPLICIT[True]
                continue
            if at + length > end:
                raise Truncated("the dataset ends inside an element")
            if tag in wanted and not inside:
                values[tag] = bytes(data[at : at + min(length, _MAX_VALUE)])
            at += length
    except struct.error:
        raise Truncated("the dataset ends inside the header of an element") from None
    raise DatasetError(f"the dataset has more than {_MAX_ELEMENTS} elements before {last:08X}")


def _is_vr(vr: bytes) -> bool:
    return vr.isalpha() and vr.isupper()


def _walk_deflated(data: memoryview, wanted: frozenset[int], last: int) -> dict[int, bytes]:
    inflated = _inflate(data, _INFLATE_FIRST)[0]
    try:
        return scan(memoryview(inflated), explicit=True, little_endian=True, wanted=wanted, last=last)
    except Truncated:
        if len(inflated) < _INFLATE_FIRST:
            raise
    # Something long comes before what is wanted: once more with all that is allowed.
    inflated = _inflate(data, _INFLATE_LAST)[0]
    return scan(memoryview(inflated), explicit=True, little_endian=True, wanted=wanted, last=last)


def inflate(encoded: Buffer, limit: int = MAX_INFLATED) -> bytearray:
    """Inflate a dataset within bounds (PS3.5 section A.5): a megabyte can become a gigabyte.

    :param limit: bytes that it may become
    :raises DatasetError: when it is not deflated, or becomes larger
    """
    inflated, is_all = _inflate(memoryview(encoded), limit)
    if not is_all:
        raise DatasetError(f"the deflated dataset becomes larger than {limit} bytes")
    return inflated


def deflate(encoded: bytes) -> bytes:
    """Deflate a dataset, to an even length."""
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = deflater.compress(encoded) + deflater.flush()
    return deflated + b"\0" * (len(deflated) % 2)


def _inflate(data: memoryview, limit: int) -> tuple[bytearray, bool]:
    """Inflate as much as `limit` bytes, whatever it would become; and whether that is all."""
    inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    inflated = bytearray()
    try:
        # In slices: the inflater keeps a copy of the input that it did not need.
        for start in range(0, len(data), _INFLATE_SLICE):
            left = data[start : start + _INFLATE_SLICE]
            while left and len(inflated) < limit and not inflater.eof:
                inflated += inflater.decompress(left, min(_INFLATE_SLICE, limit - len(inflated)))
                left = memoryview(inflater.unconsumed_tail)
            if left and not inflater.eof:
                return inflated, False
            if inflater.eof:
                break
    except zlib.error:
        raise DatasetError("the deflated dataset cannot be inflated") from None
    return inflated, True


def text(value: bytes, character_set: bytes) -> str:
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").strip("\0 ")
    names = [name.strip("\0 ") for name in character_set.decode("ascii", "replace").split("\\")]
    try:
        if len(names) == 1:
            text = value.decode(python_encoding[names[0]])
        else:
            text = decode_bytes(value, convert_encodings(names), set())
    except Exception:
        # A character set that nobody knows, or bytes that are not in it: odd, and no reason to refuse an image.
        text = value.decode("latin-1")
    return storable(text).strip("\0 ")


def storable(text: str) -> str:
    """Return a text that can be encoded: half a surrogate pair, which no index takes, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
