"""Certificates for tests: an authority, a server, a client, and strangers whom nobody has to trust."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from asyncdicom.errors import ConfigurationError

if TYPE_CHECKING:
    import trustme


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files of one test.

    :ivar ca: the authority
    :ivar certificate: a server's, for ``localhost`` and ``127.0.0.1``; signed by the authority
    :ivar key: its private key
    :ivar client_certificate: a client's; signed by the authority
    :ivar client_key: its private key
    :ivar expired_certificate: like the server's and the client's in one, out of date since yesterday
    :ivar expired_key: its private key
    :ivar foreign_ca: another authority, which nobody trusts
    :ivar foreign_certificate: like the server's and the client's in one, signed by the other authority
    :ivar foreign_key: its private key
    """

    ca: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path
    expired_certificate: Path
    expired_key: Path
    foreign_ca: Path
    foreign_certificate: Path
    foreign_key: Path

    def server_context(self, *, client_ca: bool = False) -> ssl.SSLContext:
        """Return a context that presents the server's certificate.

        :param client_ca: demand a client certificate of the authority
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        if client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context

    def client_context(self, *, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
        """Return a context that trusts the authority.

        :param certificate: what to present; nothing when None
        :param key: its private key
        """
        context = ssl.create_default_context(cafile=self.ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return context


def certificates(folder: Path, *, hosts: Sequence[str] = ("localhost", "127.0.0.1"), client_name: str = "CT1") -> Certificates:
    """Issue certificates into a folder.

    Keys are RSA: DCMTK's default TLS profile offers no other. This takes about a second of computing.

    :param folder: made when it is missing; the keys in it are readable for their owner alone
    :param hosts: names and addresses in the certificates
    :param client_name: the common name of the client's subject
    :raises ConfigurationError: when trustme, which signs them, is not installed
    """
    try:
        import trustme
    except ImportError:
        remedy = "certificates for tests need trustme: pip install 'asyncdicom[testing]'"
        raise ConfigurationError("", "", remedy) from None
    folder.mkdir(parents=True, exist_ok=True)
    rsa = trustme.KeyType.RSA
    authority = trustme.CA(organization_name="asyncdicom test authority", key_type=rsa)
    stranger = trustme.CA(organization_name="asyncdicom test stranger", key_type=rsa)
    yesterday = datetime.now(UTC) - timedelta(days=1)

    def issue(name: str, ca: trustme.CA, common_name: str, not_after: datetime | None = None) -> tuple[Path, Path]:
        leaf = ca.issue_cert(*hosts, common_name=common_name, not_after=not_after, key_type=rsa)
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.touch(mode=0o600)
        key.write_bytes(leaf.private_key_pem.bytes())
        return certificate, key

    ca, foreign_ca = folder / "ca.pem", folder / "foreign-ca.pem"
    ca.write_bytes(authority.cert_pem.bytes())
    foreign_ca.write_bytes(stranger.cert_pem.bytes())
    server = issue("server", authority, hosts[0])
    client = issue("client", authority, client_name)
    expired = issue("expired", authority, client_name, yesterday)
    foreign = issue("foreign", stranger, client_name)
    return Certificates(ca, *server, *client, *expired, foreign_ca, *foreign)
