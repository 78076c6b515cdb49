"""Deflated datasets that are small on the wire and large in memory (bar S4)."""

from __future__ import annotations

import struct
import zlib

#: Deflated Explicit VR Little Endian (PS3.5 section A.5).
DEFLATED = "1.2.840.10008.1.2.1.99"

_MEBIBYTE = 1 << 20


def bomb(size: int, *elements: tuple[int, bytes, bytes]) -> bytes:
    """Return a deflated dataset that inflates to one value of zeros, about a thousand times as large as what is sent.

    :param size: MiB that it inflates to
    :param elements: tag, VR and value of what comes before it
    """
    before = b"".join(
        struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value for tag, vr, value in sorted(elements)
    )
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    header = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, size * _MEBIBYTE)
    first = deflater.compress(before + header) + deflater.flush(zlib.Z_FULL_FLUSH)
    # Flushed like this, a block stands for itself: it can be repeated instead of being deflated again and again.
    block = deflater.compress(bytes(_MEBIBYTE)) + deflater.flush(zlib.Z_FULL_FLUSH)
    return first + block * size + deflater.flush()
