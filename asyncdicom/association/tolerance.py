"""What pynetdicom's decoder stumbles over in an A-ASSOCIATE PDU, taken out of its way (PS3.8 sections 9.3.2 and 9.3.3)."""

from __future__ import annotations

import struct

from asyncdicom.upper_layer.context import MAX_CONTEXTS, MAX_UID_LENGTH
from asyncdicom.upper_layer.negotiation import PROTOCOL_VERSION

# Items and sub-items of one request: it may be long, for a token of user identity, but not made of nothing but headers.
_MAX_ITEMS = 8_192
_KNOWN_ITEMS = (0x10, 0x20, 0x21, 0x50)
_KNOWN_USER_ITEMS = range(0x51, 0x5A)
_MAX_VERSION_NAME = 16
# User-Identity-Type of PS3.7 Table D.3-14.
_KNOWN_IDENTITIES = range(1, 6)


def tolerate(pdu: bytes | bytearray) -> bytearray:
    """Return an A-ASSOCIATE-RQ or -AC without what pynetdicom's decoder stumbles over.

    Unknown items, and sub-items of the user information, are to be ignored (PS3.8 section 9.3.1 and D.2), and so are a user
    identity of a type that nobody knows, and an implementation that names itself at too great a length. UIDs that are too long
    for it become empty, and characters that an AE title may not have become ``?``. What is decided goes by what came, not by
    this.

    :raises ValueError: when it is too short to be one, or has more items than one can have
    """
    if len(pdu) < 74:
        raise ValueError("an A-ASSOCIATE PDU has at least 74 bytes")
    fixed = bytearray(pdu[:74])
    fixed[6:8] = struct.pack(">H", PROTOCOL_VERSION)
    for start in (10, 26):
        title = fixed[start : start + 16]
        cleaned = bytes(byte if 0x20 <= byte < 0x7F and byte != 0x5C else 0x3F if byte else 0x20 for byte in title)
        fixed[start : start + 16] = cleaned if cleaned.strip() else b"?".ljust(16)
    view = memoryview(pdu)
    contexts = count = 0
    offset = 74
    while offset + 4 <= len(view):
        kind, length = view[offset], int.from_bytes(view[offset + 2 : offset + 4], "big")
        end = offset + 4 + length
        if kind == 0x50 and end <= len(view):
            known, inside = _known_items(view[offset:end])
            fixed += known
            count += 1 + inside
        elif kind in (0x20, 0x21) and end <= len(view):
            context, inside = _short_uids(view[offset:end])
            fixed += context
            contexts += 1
            count += 1 + inside
        else:
            if kind in _KNOWN_ITEMS or end > len(view):
                fixed += view[offset:end]
            count += 1
        if contexts > MAX_CONTEXTS or count > _MAX_ITEMS:
            raise ValueError("more items than an A-ASSOCIATE PDU can have")
        offset = end
    fixed += view[offset:]
    fixed[2:6] = struct.pack(">L", len(fixed) - 6)
    return fixed


def _known_items(item: memoryview) -> tuple[bytearray, int]:
    """A user-information item without the sub-items that nobody knows, and how many it had."""
    kept = bytearray(item[:4])
    count = 0
    offset = 4
    while offset + 4 <= len(item):
        stop = offset + 4 + int.from_bytes(item[offset + 2 : offset + 4], "big")
        if stop > len(item) or _is_bearable(item[offset], item[offset + 4 : stop]):
            kept += item[offset:stop]
        offset = stop
        count += 1
    kept[2:4] = struct.pack(">H", len(kept) - 4)
    return kept, count


def _is_bearable(kind: int, content: memoryview) -> bool:
    if kind == 0x52:
        return len(content) <= MAX_UID_LENGTH
    if kind == 0x55:
        return len(content) <= _MAX_VERSION_NAME and bytes(content).isascii()
    if kind == 0x58:
        return len(content) > 0 and content[0] in _KNOWN_IDENTITIES
    return kind in _KNOWN_USER_ITEMS


def _short_uids(item: memoryview) -> tuple[bytearray, int]:
    """A presentation context item with nothing in place of UIDs that are too long, and how many sub-items it has."""
    kept = bytearray(item[:8])
    count = 0
    offset = 8
    while offset + 4 <= len(item):
        stop = offset + 4 + int.from_bytes(item[offset + 2 : offset + 4], "big")
        is_long = stop <= len(item) and stop - offset - 4 > MAX_UID_LENGTH
        kept += bytes((item[offset], 0, 0, 0)) if is_long else item[offset:stop]
        offset = stop
        count += 1
    kept += item[offset:]
    kept[2:4] = struct.pack(">H", len(kept) - 4)
    return kept, count
