"""PDUs that are not what they should be, made of ones that are."""

from __future__ import annotations

from collections.abc import Callable


def resized(encoded: bytes) -> bytes:
    """A PDU with the length that it has."""
    return encoded[:2] + (len(encoded) - 6).to_bytes(4, "big") + encoded[6:]


def without(item: bytes) -> Callable[[bytes], bytes]:
    """The PDU without the item that begins with certain bytes."""

    def cut(encoded: bytes) -> bytes:
        at = encoded.index(item, 74)
        return resized(encoded[:at] + encoded[at + 4 + int.from_bytes(encoded[at + 2 : at + 4], "big") :])

    return cut
