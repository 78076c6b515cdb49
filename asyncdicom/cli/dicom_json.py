"""Matches as DICOM JSON model objects (PS3.18 Annex F), straight from their encoding.

An archive that answers with tens of thousands of matches is to be read as fast as it speaks, and pydicom's way from bytes to
JSON makes several objects of every attribute. Here an attribute that was seen before, with the same value, costs one look into
a table, and the others are written without an object in between. The tests hold the result against pydicom's.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from json import JSONEncoder
from struct import Struct
from struct import error as StructError

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR
from pydicom.valuerep import TEXT_VR_DELIMS

from asyncdicom.elements import inflate
from asyncdicom.errors import DatasetError
from asyncdicom.upper_layer.context import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)

_IMPLICIT_HEADER = Struct("<HHI").unpack_from
_EXPLICIT_HEADER = Struct("<HH2sH").unpack_from
_LONG_LENGTH = Struct("<I").unpack_from
_UNDEFINED = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD
_SPECIFIC_CHARACTER_SET = 0x00080005

# PS3.5 Table 6.2-1.
_VRS = {
    vr.encode("ascii"): vr
    for vr in (
        *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OD", "OF", "OL", "OV", "OW"),
        *("PN", "SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI", "UL", "UN", "UR", "US", "UT", "UV"),
    )
}
# PS3.5 Table 7.1-1: those with a length of 32 bits.
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_BINARY = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
# PS3.5 section 6.1.2.3: those that Specific Character Set speaks of; the last three have one value (section 6.4).
_ENCODED = frozenset(("LO", "PN", "SH", "UC", "LT", "ST", "UT"))
_SINGLE = frozenset(("LT", "ST", "UT", "UR"))
_NUMBERS = {
    vr: Struct(f"<{code}") for vr, code in zip(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"), "dfihqIHQ", strict=True)
}
_COMPONENT_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")

_TEXT = frozenset(_VRS.values()) - _BINARY - set(_NUMBERS) - {"AT", "SQ"}

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_PADDING = "\0 "
# Sent to a terminal these would be commands; JSON allows them as they are, and as escapes.
_CONTROLS = re.compile("[\x7f-\x9f]")
_DEFAULT_ENCODING = ("iso8859",)

# Values longer than this seldom come twice; and so many attributes are remembered for each character set.
_REMEMBERED_LENGTH = 80
_REMEMBERED = 8_192
_DEEPEST = 16

_quote: Callable[[str], str] = JSONEncoder(ensure_ascii=False).encode


def quote(text: str) -> str:
    """Return text as a JSON string, readable, and harmless on a terminal."""
    quoted = _quote(text)
    if quoted.isprintable():
        return quoted
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


class JSONModel:
    """Writes datasets of one transfer syntax as DICOM JSON model objects.

    :param transfer_syntax: how they are encoded
    """

    def __init__(self, transfer_syntax: str) -> None:
        self._deflated = transfer_syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
        self._implicit = transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
        if not self._implicit and not self._deflated and transfer_syntax != EXPLICIT_VR_LITTLE_ENDIAN:
            # It is retired, and nobody here proposes it (PS3.5 section A.3).
            raise DatasetError(f"transfer syntax {transfer_syntax} is not one that queries are answered in")
        self._header = _IMPLICIT_HEADER if self._implicit else _EXPLICIT_HEADER
        self._remembered: dict[Sequence[str], dict[bytes, str]] = {}

    def members(self, encoded: bytes) -> str:
        """Return the members of a dataset's object, without its braces.

        :raises DatasetError: when the dataset cannot be decoded
        """
        if self._deflated:
            encoded = bytes(inflate(encoded))
        try:
            return ",".join(self._dataset(encoded, 0, len(encoded), _DEFAULT_ENCODING, 0)[0])
        except DatasetError:
            raise
        except (StructError, LookupError, ValueError) as error:
            raise DatasetError(f"the dataset cannot be decoded: {type(error).__name__}") from error

    def _dataset(self, data: bytes, at: int, end: int, charset: Sequence[str], depth: int) -> tuple[list[str], int]:
        """Return the members of the dataset that begins at a position, and where it ends: at ``end`` or at its delimiter."""
        if depth > _DEEPEST:
            raise DatasetError(f"sequences are nested more than {_DEEPEST} deep")
        members: list[str] = []
        remembered = self._of_charset(charset)
        implicit, header = self._implicit, self._header
        while at < end:
            start, vr = at, b""
            if implicit:
                group, element, length = header(data, at)
                at += 8
            else:
                group, element, vr, length = header(data, at)
                at += 8
                if vr in _LONG_VRS:
                    (length,) = _LONG_LENGTH(data, at)
                    at += 4
                elif group == 0xFFFE:
                    (length,) = _LONG_LENGTH(data, at - 4)
            stop = at + length
            if stop <= end and length <= _REMEMBERED_LENGTH:
                known = remembered.get(data[start:stop])
                if known is not None:
                    members.append(known)
                    at = stop
                    continue
            tag = group << 16 | element
            if tag == _ITEM_END:
                return members, at
            name = _VRS.get(vr) if vr else _vr_of(tag)
            if name is None:
                raise DatasetError("the dataset has a value representation that DICOM has not")
            if name == "SQ" or length == _UNDEFINED:
                if stop > end and length != _UNDEFINED:
                    raise DatasetError("the dataset ends inside of a sequence")
                items, at = self._sequence(data, at, end if length == _UNDEFINED else stop, charset, depth)
                value = f',"Value":[{",".join(items)}]' if items else ""
                members.append(f'"{tag:08X}":{{"vr":"SQ"{value}}}')
                continue
            if stop > end:
                raise DatasetError("the dataset ends inside of an attribute")
            raw, at = data[at:stop], stop
            if element == 0:
                # PS3.18 section F.2.2: group lengths are left out.
                continue
            member = f'"{tag:08X}":{{"vr":"{name}"{_value(name, raw, charset)}}}'
            members.append(member)
            if tag == _SPECIFIC_CHARACTER_SET:
                charset = tuple(convert_encodings([part.strip() for part in raw.decode("ascii").rstrip(_PADDING).split("\\")]))
                remembered = self._of_charset(charset)
            elif length <= _REMEMBERED_LENGTH and name != "UI":
                if len(remembered) >= _REMEMBERED:
                    remembered.clear()
                remembered[data[start:stop]] = member
        return members, at

    def _of_charset(self, charset: Sequence[str]) -> dict[bytes, str]:
        return self._remembered.setdefault(charset, {})

    def _sequence(self, data: bytes, at: int, end: int, charset: Sequence[str], depth: int) -> tuple[list[str], int]:
        """Return the items of a sequence as objects, and where it ends (PS3.5 section 7.5)."""
        items: list[str] = []
        while at < end:
            # Items are without VR in every transfer syntax.
            group, element, length = _IMPLICIT_HEADER(data, at)
            at += 8
            tag = group << 16 | element
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM:
                raise DatasetError("a sequence holds something else than items")
            if length != _UNDEFINED and at + length > end:
                raise DatasetError("the dataset ends inside of an item")
            members, at = self._dataset(data, at, end if length == _UNDEFINED else at + length, charset, depth + 1)
            items.append("{" + ",".join(members) + "}")
        return items, at


@lru_cache(maxsize=1024)
def _vr_of(tag: int) -> str:
    """Return the VR of an attribute that came without one (PS3.5 section A.1)."""
    if tag >> 16 & 1:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    try:
        # Where the dictionary leaves a choice, as with "US or SS", the first is what a query answer has.
        return dictionary_VR(tag).partition(" ")[0]
    except KeyError:
        return "UN"


def _value(vr: str, raw: bytes, charset: Sequence[str]) -> str:
    """Return the value as a member of its attribute's object; nothing for an empty value."""
    if not raw:
        return ""
    if vr not in _TEXT:
        return _not_text(vr, raw)
    text = (_decode(raw, charset) if vr in _ENCODED else raw.decode("iso8859")).rstrip(_PADDING)
    if not text:
        return ""
    if vr in _SINGLE:
        return f',"Value":[{quote(text)}]'
    write = _WRITERS.get(vr, _string)
    if "\\" not in text:
        return f',"Value":[{write(text)}]'
    return f',"Value":[{",".join([write(part) for part in text.split(chr(92))])}]'


def _not_text(vr: str, raw: bytes) -> str:
    if vr in _BINARY:
        return f',"InlineBinary":"{base64.b64encode(raw).decode("ascii")}"'
    if vr == "AT":
        tags = [f'"{group:04X}{element:04X}"' for group, element in Struct("<HH").iter_unpack(raw)]
        return f',"Value":[{",".join(tags)}]'
    numbers = [_number(number) for (number,) in _NUMBERS[vr].iter_unpack(raw)]
    return f',"Value":[{",".join(numbers)}]'


def _decode(raw: bytes, charset: Sequence[str]) -> str:
    if raw.isascii() and b"\x1b" not in raw:
        # Every character set but UTF-16, which DICOM has not, agrees on these.
        return raw.decode("ascii")
    if len(charset) == 1:
        return raw.decode(charset[0], "replace")
    return decode_bytes(raw, charset, TEXT_VR_DELIMS)


def _number(number: float) -> str:
    if math.isfinite(number):
        return repr(number)
    return '"NaN"' if math.isnan(number) else '"Infinity"' if number > 0 else '"-Infinity"'


def _string(text: str) -> str:
    # PS3.18 section F.2.5: an empty value among others is null.
    text = text.rstrip(_PADDING)
    return quote(text) if text else "null"


def _trimmed(text: str) -> str:
    return _string(text.strip(_PADDING))


def _decimal(text: str) -> str:
    text = text.strip(_PADDING)
    if _NUMBER.fullmatch(text):
        return text
    try:
        number = float(text)
    except ValueError:
        return quote(text) if text else "null"
    return repr(number) if math.isfinite(number) else quote(text)


def _integer(text: str) -> str:
    text = text.strip(_PADDING)
    try:
        return str(int(text))
    except ValueError:
        return quote(text) if text else "null"


def _person_name(text: str) -> str:
    groups = [
        f'"{name}":{quote(group)}'
        for name, group in zip(_COMPONENT_GROUPS, text.rstrip(_PADDING).split("="), strict=False)
        if group
    ]
    return "{" + ",".join(groups) + "}" if groups else "null"


_WRITERS: dict[str, Callable[[str], str]] = {
    "AE": _trimmed,
    "DS": _decimal,
    "IS": _integer,
    "PN": _person_name,
}
