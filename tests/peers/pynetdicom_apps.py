"""pynetdicom's applications as processes of their own: the reference implementation, seen over the wire."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.peers.peer import HOST, Peer, Target, wait_for_echo
from tests.peers.running import Command, free_port, serving

_APP = (sys.executable, "-m", "pynetdicom")


def _serve_words(name: str, ae_title: str, extra: Sequence[str]) -> list[str]:
    return [*_APP, name, "-v", "-aet", ae_title, "-ba", HOST, *extra]


@contextmanager
def echoscp(folder: Path, *, ae_title: str = "ECHOSCP", extra: Sequence[str] = ()) -> Iterator[Peer]:
    """``python -m pynetdicom echoscp``."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with serving([*_serve_words("echoscp", ae_title, extra), str(port)], log=folder / "echoscp.log") as server:
        yield wait_for_echo(Peer(ae_title, port, server, folder))


@contextmanager
def storescp(folder: Path, *, ae_title: str = "PYNSTORESCP", extra: Sequence[str] = ()) -> Iterator[Peer]:
    """``python -m pynetdicom storescp``, which writes what it receives to ``folder/received``."""
    received = folder / "received"
    received.mkdir(parents=True)
    port = free_port()
    argv: list[str | Path] = [*_serve_words("storescp", ae_title, extra), "-od", received, str(port)]
    with serving(argv, log=folder / "storescp.log") as server:
        yield wait_for_echo(Peer(ae_title, port, server, received))


@contextmanager
def qrscp(
    folder: Path, *, ae_title: str = "QRSCP", destinations: Sequence[Target] = (), extra: Sequence[str] = ()
) -> Iterator[Peer]:
    """``python -m pynetdicom qrscp``, a query/retrieve provider; fill it by C-STORE.

    :param destinations: application entities that it can move to
    """
    instances = folder / "instances"
    instances.mkdir(parents=True)
    port = free_port()
    sections = [
        "[DEFAULT]",
        f"ae_title: {ae_title}",
        f"port: {port}",
        "max_pdu: 16382",
        "acse_timeout: 10",
        "dimse_timeout: 10",
        "network_timeout: 30",
        f"bind_address: {HOST}",
        f"instance_location: {instances}",
        f"database_location: {folder / 'instances.sqlite'}",
        "log_identifier: False",
    ]
    for to in destinations:
        sections += [f"[{to.ae_title}]", f"address: {to.host}", f"port: {to.port}"]
    config = folder / "qrscp.ini"
    config.write_text("\n".join(sections) + "\n")
    with serving([*_APP, "qrscp", "-v", "-c", config, *extra], log=folder / "qrscp.log") as server:
        yield wait_for_echo(Peer(ae_title, port, server, instances))


def _scu(name: str, to: Target, calling: str, options: Sequence[str | Path]) -> Command:
    words = [*_APP, name, "-v", "-aet", calling, "-aec", to.ae_title, *(str(option) for option in options)]
    return Command(tuple(words))


def echoscu(to: Target, *, calling: str = "ECHOSCU", extra: Sequence[str] = ()) -> Command:
    """C-ECHO."""
    return _scu("echoscu", to, calling, [*extra, to.host, str(to.port)])


def storescu(to: Target, path: Path, *, calling: str = "STORESCU", extra: Sequence[str] = ()) -> Command:
    """C-STORE of a file or a folder."""
    recurse = ["-r"] if path.is_dir() else []
    return _scu("storescu", to, calling, [*recurse, "-cx", *extra, to.host, str(to.port), path])


def _keys(keys: Mapping[str, str]) -> list[str]:
    return [word for keyword, value in keys.items() for word in ("-k", f"{keyword}={value}")]


def findscu(
    to: Target, keys: Mapping[str, str], *, model: str = "-S", calling: str = "FINDSCU", extra: Sequence[str] = ()
) -> Command:
    """C-FIND.

    :param model: ``-S`` study root, ``-P`` patient root, ``-W`` worklist
    """
    return _scu("findscu", to, calling, [model, *_keys(keys), *extra, to.host, str(to.port)])


def movescu(
    to: Target,
    keys: Mapping[str, str],
    destination: str,
    *,
    model: str = "-S",
    calling: str = "MOVESCU",
    extra: Sequence[str] = (),
) -> Command:
    """C-MOVE to another application entity.

    :param destination: its AE title
    """
    return _scu("movescu", to, calling, [model, "-aem", destination, *_keys(keys), *extra, to.host, str(to.port)])


def getscu(
    to: Target,
    keys: Mapping[str, str],
    into: Path,
    *,
    model: str = "-S",
    calling: str = "GETSCU",
    extra: Sequence[str] = (),
) -> Command:
    """C-GET into a folder."""
    return _scu("getscu", to, calling, [model, "-od", into, *_keys(keys), *extra, to.host, str(to.port)])
