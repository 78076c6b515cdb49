"""Who may in: by address before a byte is read, by AE title and certificate once they say who they are."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from asyncdicom.association.tls_profile import apply_profile
from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import check_ae_title, is_loopback

# What a peer may do: C-ECHO, C-STORE, and N-ACTION of the Storage Commitment Push Model SOP class.
OperationName = Literal["echo", "store", "commit"]
EVERY_OPERATION: frozenset[OperationName] = frozenset(get_args(OperationName))

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# A-ASSOCIATE-RJ as result, source, reason/diagnostic (PS3.8 Table 9-21).
CALLING_AE_TITLE_NOT_RECOGNIZED = (1, 1, 3)
CALLED_AE_TITLE_NOT_RECOGNIZED = (1, 1, 7)
TEMPORARY_CONGESTION = (2, 3, 1)
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)


@dataclass(frozen=True, slots=True)
class AllowRule:
    """One admitted peer.

    :ivar ae_title: its calling AE title; None for any
    :ivar networks: where it may come from; none for anywhere
    :ivar operations: what it may do
    """

    ae_title: str | None = None
    networks: tuple[Network, ...] = ()
    operations: frozenset[OperationName] = EVERY_OPERATION

    @classmethod
    def parse(
        cls,
        ae_title: str | None = None,
        networks: Iterable[str] = (),
        operations: Iterable[OperationName] = EVERY_OPERATION,
    ) -> AllowRule:
        """Make a rule of text.

        :raises ConfigurationError: when a network, the AE title or an operation is not one
        """
        parsed = []
        for text in networks:
            try:
                parsed.append(ipaddress.ip_network(text))
            except ValueError as error:
                raise ConfigurationError("networks", text, f"a network such as 10.1.0.0/16 ({error})") from None
        wanted = frozenset(operations)
        if not wanted or wanted - EVERY_OPERATION:
            remedy = f"some of {', '.join(sorted(EVERY_OPERATION))}: who may do nothing needs no rule"
            raise ConfigurationError("operations", sorted(wanted), remedy)
        return cls(check_ae_title(ae_title) if ae_title else None, tuple(parsed), wanted)

    def admits(self, calling_ae_title: str, address: Address) -> bool:
        """Whether all that the rule names holds."""
        return self.ae_title in (None, calling_ae_title) and self.admits_address(address)

    def admits_address(self, address: Address) -> bool:
        """Whether the address is in one of the networks."""
        return not self.networks or any(address.version == network.version and address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class ServerTLS:
    """TLS of the storage SCP.

    :ivar certificate: our certificate chain
    :ivar key: its private key
    :ivar client_ca: authorities of client certificates; None asks for none
    :ivar bind: common name or DNS name of a client certificate to the calling AE titles that it may use; case does not count
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    bind: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def context(self) -> ssl.SSLContext:
        """Make the TLS context. Reads files.

        :raises ConfigurationError: when a file is missing or is not what it should be
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        apply_profile(context)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            if self.client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError("scp.tls", str(self.certificate), f"not usable: {error}") from error
        return context

    def titles(self) -> dict[str, frozenset[str]]:
        """The AE titles of each name, as :func:`certificate_names` has the names."""
        titles: dict[str, frozenset[str]] = {}
        for name, bound in self.bind.items():
            titles[name.lower()] = titles.get(name.lower(), frozenset()) | frozenset(bound)
        return titles


class Access:
    """The decisions about who may in.

    :param rules: the admitted peers; none admits everybody, which is for loopback alone
    :param accept_any: admit everybody beyond loopback too
    """

    def __init__(self, rules: Iterable[AllowRule] = (), *, accept_any: bool = False) -> None:
        self.rules = tuple(rules)
        self.accept_any = accept_any

    def check_binding(self, host: str) -> None:
        """Refuse to open to a network without knowing who may in.

        :raises ConfigurationError: when the host is beyond loopback and nothing restricts who may in
        """
        if self.rules or self.accept_any or is_loopback(host):
            return
        raise ConfigurationError(
            "scp.host", host, "beyond loopback it needs [[scp.allow]], or accept_any = true to take everybody's instances"
        )

    def admits_address(self, address: str) -> bool:
        """Whether a connection from an address is served at all."""
        if not self.rules or self.accept_any:
            return True
        parsed = _parsed(address)
        return any(rule.admits_address(parsed) for rule in self.rules)

    def admits(self, calling_ae_title: str, address: str) -> bool:
        """Whether a calling AE title from an address may associate."""
        return bool(self.operations(calling_ae_title, address))

    def operations(self, calling_ae_title: str, address: str) -> frozenset[OperationName]:
        """What a calling AE title from an address may do: all that any of the rules that hold for it says."""
        if not self.rules or self.accept_any:
            return EVERY_OPERATION
        parsed = _parsed(address)
        rules = [rule.operations for rule in self.rules if rule.admits(calling_ae_title, parsed)]
        return frozenset().union(*rules)


def _parsed(address: str) -> Address:
    return ipaddress.ip_address(address.partition("%")[0])


def _no_password() -> str:
    # Without this, OpenSSL asks on the terminal, and waits.
    raise ssl.SSLError("the key is encrypted, and nobody is there to be asked for its passphrase: keep it decrypted, mode 0600")


def certificate_names(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """The names in a peer's certificate, as :meth:`ssl.SSLSocket.getpeercert` gives it: common names, and DNS names of
    subjectAltName; in lower case.
    """
    if not certificate:
        return frozenset()
    subject = [pair for attributes in certificate.get("subject", ()) for pair in attributes]
    names = [value for kind, value in subject if kind == "commonName"]
    names += [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return frozenset(str(name).lower() for name in names)
