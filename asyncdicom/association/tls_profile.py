"""The TLS that is spoken, by whichever side: the BCP 195 profiles of PS3.15 Annex B."""

from __future__ import annotations

import ssl

from asyncdicom.association.handshake import TellingObject

# TLS 1.2 with an ephemeral key exchange and authenticated encryption (RFC 9325 section 4.2), as all of TLS 1.3 is. Level 2
# refuses keys and signatures of less than 112 bits.
CIPHERS = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20:!PSK"


def apply_profile(context: ssl.SSLContext) -> None:
    """Have a context speak TLS 1.2 and 1.3 by the profile, and nothing below."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.sslobject_class = TellingObject
    # Both make attacks possible, and no DICOM implementation needs them.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
