"""dcmjs-dimse: DICOM in JavaScript, independent of every other peer, as a query/retrieve provider and as a client.

``javascript/dcmjs.js`` does the talking. It gets its settings as one JSON object and says what happens line by line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.peers.certificates import Identity
from tests.peers.fixtures import Starter
from tests.peers.node import SCRIPTS, node
from tests.peers.peer import HOST, Peer, Target, wait_for_echo
from tests.peers.running import free_port, run_program_async, serving


def _words(role: str, settings: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    path, environment = node()
    return [path, str(SCRIPTS / "dcmjs.js"), role, json.dumps(settings)], environment


def _files(identity: Identity | None) -> dict[str, str] | None:
    if identity is None:
        return None
    return {"key": str(identity.key), "certificate": str(identity.certificate), "ca": str(identity.ca)}


def _events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@dataclass(frozen=True)
class Archive(Peer):
    """A running query/retrieve provider. It keeps what it gets as bare datasets, byte for byte."""

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What it has said so far.

        :param kind: ``association``, ``stored``, ``cancelled``, ``released``, ``aborted`` or ``error``
        """
        return [event for event in _events(self.server.output) if event["event"] == kind]

    def dataset(self, sop_instance_uid: str) -> bytes:
        """The bytes of an instance as they came."""
        return (self.directory / f"{sop_instance_uid}.dataset").read_bytes()

    def sent(self, sop_instance_uid: str) -> bytes:
        """The bytes of an instance as it sent them last, by C-GET or C-MOVE."""
        return (self.directory / f"{sop_instance_uid}.sent").read_bytes()


@contextmanager
def scp(
    folder: Path,
    *,
    ae_title: str = "DCMJS",
    instances: Sequence[Path] = (),
    destinations: Sequence[Target] = (),
    endless: bool = False,
    tls: Identity | None = None,
    client: Identity | None = None,
) -> Iterator[Archive]:
    """A query/retrieve and storage provider; it rejects those who call it by another AE title.

    :param instances: files that it offers
    :param destinations: application entities that it can move to
    :param endless: it answers C-FIND with matches until C-CANCEL comes
    :param tls: the server's certificate; with it, clients must present one that its authority signed
    :param client: what the proof presents, and what :attr:`Peer.tls` becomes
    """
    received = folder / "received"
    received.mkdir(parents=True)
    port = free_port()
    settings = {
        "ae_title": ae_title,
        "host": HOST,
        "port": port,
        "directory": str(received),
        "instances": [str(path) for path in instances],
        "destinations": {to.ae_title: [to.host, to.port] for to in destinations},
        "endless": endless,
        "tls": _files(tls),
    }
    words, environment = _words("scp", settings)
    with serving(words, log=folder / "dcmjs.log", env=environment) as server:
        peer = Archive(ae_title, port, server, received, client)
        wait_for_echo(peer)
        yield peer


@dataclass(frozen=True)
class Said:
    """What a client said.

    :ivar events: in order
    :ivar directory: where the bytes of the instances are that it sent
    """

    events: list[dict[str, Any]]
    directory: Path

    @property
    def kinds(self) -> list[str]:
        """The kinds of its events."""
        return [event["event"] for event in self.events]

    @property
    def statuses(self) -> list[int]:
        """The statuses of the responses, in order."""
        return [event["status"] for event in self.events if event["event"] == "response"]

    def sent(self, sop_instance_uid: str) -> bytes:
        """The bytes of an instance as they were sent."""
        return (self.directory / f"{sop_instance_uid}.sent").read_bytes()


async def scu(
    to: Target,
    operations: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    calling: str = "DCMJS",
    contexts: Mapping[str, Sequence[str]] | None = None,
    asynchronous: bool = False,
    user_name: str = "",
    tls: Identity | None = None,
) -> Said:
    """Do operations on one association, and return what came.

    :param operations: each with its ``name``: ``echo``, ``store`` (``file``), ``find`` (``keys``) or ``get`` (``study``); with
        ``abort`` the response is answered by A-ABORT
    :param folder: where it notes what it sends
    :param contexts: further abstract syntaxes to propose, with their transfer syntaxes
    :param asynchronous: propose a window of eight operations
    :param user_name: propose a user identity
    """
    settings = {
        "host": to.host,
        "port": to.port,
        "calling": calling,
        "called": to.ae_title,
        "operations": list(operations),
        "directory": str(folder),
        "contexts": list((contexts or {}).items()),
        "asynchronous": asynchronous,
        "user_name": user_name,
        "tls": _files(tls),
    }
    words, environment = _words("scu", settings)
    ended = await run_program_async(words, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Said(_events(ended.stdout), folder)


@pytest.fixture(name="start_dcmjs")
def start_dcmjs_fixture(tmp_path: Path) -> Iterator[Starter[Archive]]:
    """dcmjs-dimse as a provider: call it with the settings of :func:`scp`. Imported by the tests that need it."""
    starter = Starter(scp, tmp_path / "dcmjs")
    try:
        yield starter
    finally:
        starter.close()
