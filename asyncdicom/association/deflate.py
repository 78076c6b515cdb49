"""Deflated datasets (PS3.5 section A.5), inflated within bounds: a megabyte can become a gigabyte."""

from __future__ import annotations

import zlib

from asyncdicom.errors import DatasetError

# What anybody may inflate to, in bytes: a query's answer is kilobytes.
MAX_INFLATED = 8 << 20


def inflate(encoded: bytes | bytearray | memoryview, limit: int = MAX_INFLATED) -> bytes:
    """Inflate a dataset.

    :param limit: bytes that it may become
    :raises DatasetError: when it is not deflated, or becomes larger
    """
    inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(encoded, limit)
    except zlib.error as error:
        raise DatasetError("the deflated dataset cannot be inflated") from error
    if inflater.unconsumed_tail:
        raise DatasetError(f"the deflated dataset becomes larger than {limit} bytes")
    return inflated


def deflate(encoded: bytes) -> bytes:
    """Deflate a dataset, to an even length."""
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = deflater.compress(encoded) + deflater.flush()
    return deflated + b"\0" * (len(deflated) % 2)
