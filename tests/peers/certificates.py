"""Certificates for TLS tests: an authority, a server, a client, and strangers whom nobody has to trust."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Identity:
    """A certificate chain with its private key, and the authority to verify it with, all PEM files."""

    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True)
class Certificates:
    """The files of one test session.

    :ivar ca: the authority
    :ivar server: for ``localhost`` and ``127.0.0.1``
    :ivar client: subject common name ``CT1``
    :ivar expired: a client of the same authority, out of date
    :ivar foreign: a client and server of an authority that nobody trusts
    """

    ca: Path
    server: Identity
    client: Identity
    expired: Identity
    foreign: Identity


def issue(folder: Path) -> Certificates:
    """Issue everything into a folder."""
    # RSA, because DCMTK's default profile offers no ECDSA suites.
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    stranger = trustme.CA(organization_name="Stranger", key_type=trustme.KeyType.RSA)
    yesterday = datetime.now(UTC) - timedelta(days=1)

    def write(name: str, ca: trustme.CA, common_name: str, not_after: datetime | None = None) -> Identity:
        leaf = ca.issue_cert(
            "localhost", "127.0.0.1", common_name=common_name, not_after=not_after, key_type=trustme.KeyType.RSA
        )
        certificate, key, root = folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}-ca.pem"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())
        key.chmod(0o600)
        root.write_bytes(ca.cert_pem.bytes())
        return Identity(certificate, key, root)

    server = write("server", authority, "localhost")
    return Certificates(
        ca=server.ca,
        server=server,
        client=write("client", authority, "CT1"),
        expired=write("expired", authority, "CT1", yesterday),
        foreign=write("foreign", stranger, "CT1"),
    )
