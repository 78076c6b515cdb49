"""How what is sent is signed, in the manner of Standard Webhooks: a receiver knows who sent it, when, and that it is whole."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac


def key_of(secret: bytes) -> bytes:
    """The key in the content of a secret file: ``whsec_`` and base64, or the bytes themselves without white space around.

    :raises ValueError: when there is none
    """
    text = secret.strip()
    if text.startswith(b"whsec_"):
        try:
            text = base64.b64decode(text.removeprefix(b"whsec_"), validate=True)
        except binascii.Error:
            raise ValueError("what follows whsec_ has to be base64") from None
    if not text:
        raise ValueError("the file has to hold a secret")
    return text


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of Standard Webhooks, version 1: base64 of HMAC-SHA256 over ``id.timestamp.body``.

    :param timestamp: seconds since the epoch (UTC), when it is sent
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
