"""A foreign application entity under test: its address, and a proof that it answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from asyncdicom.modality import TLS, Modality
from tests.peers.certificates import Identity
from tests.peers.programs import find_program
from tests.peers.running import Command, Server

HOST = "127.0.0.1"


class Target(Protocol):
    """Whatever has an AE title and an address: a :class:`Peer`, an :class:`Address`, a :class:`~asyncdicom.Modality`."""

    @property
    def ae_title(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


@dataclass(frozen=True)
class Address:
    """An application entity by its address alone, for example one of ours."""

    ae_title: str
    port: int
    host: str = HOST


@dataclass(frozen=True)
class Peer:
    """A foreign server that was seen to answer.

    :ivar directory: where it keeps what it receives or offers
    :ivar tls: what to present to it, and whom to trust; None for plain TCP
    """

    ae_title: str
    port: int
    server: Server
    directory: Path
    tls: Identity | None = None
    host: str = HOST

    @property
    def files(self) -> list[Path]:
        """The files that lie in its folder, by name."""
        return sorted(path for path in self.directory.rglob("*") if path.is_file())

    def modality(self, name: str = "peer", **settings: Any) -> Modality:
        """It as one of our modalities.

        :param settings: further fields of :class:`~asyncdicom.Modality`
        """
        if self.tls is not None:
            tls = TLS(ca=self.tls.ca, certificate=self.tls.certificate, key=self.tls.key)
            settings.setdefault("tls", tls)
        return Modality(name, ae_title=self.ae_title, host=self.host, port=self.port, **settings)


def tls_options(identity: Identity | None) -> list[str]:
    """The options by which every DCMTK program, client or server, speaks mutual TLS."""
    if identity is None:
        return []
    return ["+tls", str(identity.key), str(identity.certificate), "+cf", str(identity.ca)]


def proof_of_echo(target: Target, tls: Identity | None = None) -> Command:
    """A foreign C-ECHO: DCMTK's, or pynetdicom's where DCMTK is missing (it has no TLS)."""
    echoscu = find_program("echoscu")
    if echoscu is None:
        assert tls is None, "only DCMTK can prove a TLS peer"
        words = [sys.executable, "-m", "pynetdicom", "echoscu", "-aec", target.ae_title, target.host, str(target.port)]
    else:
        timeouts = ["-to", "5", "-ta", "5", "-td", "5"]
        words = [str(echoscu), *timeouts, "-aec", target.ae_title, *tls_options(tls), target.host, str(target.port)]
    return Command(tuple(words))


def wait_for_echo(peer: Peer) -> Peer:
    """Return the peer once a foreign C-ECHO succeeds against it.

    :raises ProgramDied: when it ended, or does not answer in time
    """
    command = proof_of_echo(peer, peer.tls)
    peer.server.wait_until(lambda: command.run(timeout=10.0).returncode == 0)
    return peer
