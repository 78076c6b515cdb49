"""DCMTK: its servers on free loopback ports, and its clients with deadlines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.peers.certificates import Identity
from tests.peers.peer import HOST, Address, Peer, Target, tls_options, wait_for_echo
from tests.peers.programs import program
from tests.peers.running import Command, free_port, run_program, serving

# DCMTK leaves Nagle's algorithm on unless the environment says otherwise.
NODELAY: Mapping[str, str] = {"TCP_NODELAY": "1"}
NAGLE: Mapping[str, str] = {"TCP_NODELAY": "0"}

_QRSCP_CONFIG = """\
NetworkTCPPort  = {port}
MaxPDUSize      = 16384
MaxAssociations = 32

HostTable BEGIN
{hosts}
HostTable END

VendorTable BEGIN
VendorTable END

AETable BEGIN
{ae_title} {database} RW (1000, 4096mb) ANY
AETable END
"""

# One scheduled procedure step (PS3.4 Table K.6-1), as dump2dcm reads it.
_WORKLIST_ITEM = """\
(0008,0005) CS [ISO_IR 192]
(0008,0050) SH [{accession_number}]
(0010,0010) PN [{patient_name}]
(0010,0020) LO [{patient_id}]
(0010,0030) DA [19700101]
(0010,0040) CS [O]
(0020,000d) UI [1.2.826.0.1.3680043.8.498.1.{number}]
(0032,1032) PN [Doe^Referring]
(0032,1060) LO [CT chest]
(0040,0100) SQ
(fffe,e000) na
(0008,0060) CS [CT]
(0040,0001) AE [CT1]
(0040,0002) DA [20260102]
(0040,0003) TM [101500]
(0040,0006) PN [Doe^Performing]
(0040,0007) LO [CT chest]
(0040,0009) SH [STEP{number}]
(0040,0010) SH [CT1]
(0040,0011) SH [Room 1]
(fffe,e00d) na
(fffe,e0dd) na
(0040,1001) SH [PROC{number}]
"""


@contextmanager
def storescp(
    folder: Path,
    *,
    ae_title: str = "STORESCP",
    tls: Identity | None = None,
    client: Identity | None = None,
    extra: Sequence[str] = (),
) -> Iterator[Peer]:
    """``storescp``, which writes what it receives to ``folder/received``.

    :param tls: the server's certificate; with it, clients must present one that its authority signed
    :param client: what the proof presents, and what :attr:`Peer.tls` becomes
    :param extra: further options
    """
    received = folder / "received"
    received.mkdir(parents=True)
    port = free_port()
    argv: list[str | Path] = [
        program("storescp"),
        "-v",
        "-pm",
        "+xa",
        "-aet",
        ae_title,
        "-od",
        received,
        *tls_options(tls),
        *extra,
        str(port),
    ]
    with serving(argv, log=folder / "storescp.log", env=NODELAY) as server:
        yield wait_for_echo(Peer(ae_title, port, server, received, client))


@contextmanager
def dcmqrscp(
    folder: Path,
    *,
    ae_title: str = "DCMQRSCP",
    destinations: Sequence[Target] = (),
    instances: Sequence[Path] = (),
    extra: Sequence[str] = (),
) -> Iterator[Peer]:
    """``dcmqrscp``, a query/retrieve provider.

    :param destinations: application entities that it can move to
    :param instances: files that it offers from the start
    """
    database = folder / "database"
    database.mkdir(parents=True)
    if instances:
        indexed = run_program([program("dcmqridx"), database, *instances])
        assert indexed.returncode == 0, indexed.stderr
    port = free_port()
    hosts = "\n".join(f"host{number} = ({to.ae_title}, {to.host}, {to.port})" for number, to in enumerate(destinations))
    config = folder / "dcmqrscp.cfg"
    config.write_text(_QRSCP_CONFIG.format(port=port, hosts=hosts, ae_title=ae_title, database=database))
    argv: list[str | Path] = [program("dcmqrscp"), "-v", "-c", config, *extra]
    with serving(argv, log=folder / "dcmqrscp.log", env=NODELAY) as server:
        yield wait_for_echo(Peer(ae_title, port, server, database))


@contextmanager
def wlmscpfs(folder: Path, *, ae_title: str = "WORKLIST", items: int = 1, extra: Sequence[str] = ()) -> Iterator[Peer]:
    """``wlmscpfs``, a worklist provider.

    :param items: how many scheduled procedure steps it offers, for patients ``W1``, ``W2`` ...
    """
    worklist = folder / "worklists" / ae_title
    worklist.mkdir(parents=True)
    # It refuses to read a folder that it cannot lock.
    (worklist / "lockfile").touch()
    for number in range(1, items + 1):
        dump = folder / f"{number}.dump"
        dump.write_text(
            _WORKLIST_ITEM.format(
                number=number, accession_number=f"ACC{number}", patient_id=f"W{number}", patient_name=f"Doe^Worklist{number}"
            )
        )
        made = run_program([program("dump2dcm"), "-g", dump, worklist / f"{number}.wl"])
        assert made.returncode == 0, made.stderr
    port = free_port()
    argv: list[str | Path] = [program("wlmscpfs"), "-v", "-dfp", worklist.parent, *extra, str(port)]
    with serving(argv, log=folder / "wlmscpfs.log", env=NODELAY) as server:
        yield wait_for_echo(Peer(ae_title, port, server, worklist))


def _scu(
    name: str,
    to: Target,
    calling_ae_title: str,
    options: Sequence[str | Path],
    files: Sequence[Path],
    tls: Identity | None,
    nodelay: bool,
) -> Command:
    words = [
        program(name),
        "-v",
        "-aet",
        calling_ae_title,
        "-aec",
        to.ae_title,
        *tls_options(tls),
        *(str(option) for option in options),
        to.host,
        str(to.port),
        *(str(path) for path in files),
    ]
    return Command(tuple(words), NODELAY if nodelay else NAGLE)


def echoscu(
    to: Target, *, calling: str = "ECHOSCU", extra: Sequence[str] = (), tls: Identity | None = None, nodelay: bool = True
) -> Command:
    """C-ECHO."""
    return _scu("echoscu", to, calling, extra, (), tls, nodelay)


def storescu(
    to: Target,
    files: Sequence[Path],
    *,
    calling: str = "STORESCU",
    extra: Sequence[str] = (),
    tls: Identity | None = None,
    nodelay: bool = True,
) -> Command:
    """C-STORE of files and folders, in one association.

    :param nodelay: False leaves Nagle's algorithm on, DCMTK's default
    """
    options = ["+sd", "+r"] if any(path.is_dir() for path in files) else []
    return _scu("storescu", to, calling, [*options, *extra], files, tls, nodelay)


def dcmsend(
    to: Target, files: Sequence[Path], *, calling: str = "DCMSEND", extra: Sequence[str] = (), nodelay: bool = True
) -> Command:
    """C-STORE by the simpler of DCMTK's senders; it proposes only the contexts that it needs, and has no TLS."""
    options = ["+sd", "+r"] if any(path.is_dir() for path in files) else []
    return _scu("dcmsend", to, calling, [*options, *extra], files, None, nodelay)


def _keys(keys: Mapping[str, str]) -> list[str]:
    return [word for keyword, value in keys.items() for word in ("-k", f"{keyword}={value}" if value else keyword)]


def findscu(
    to: Target,
    keys: Mapping[str, str],
    *,
    model: str = "-S",
    calling: str = "FINDSCU",
    extra: Sequence[str] = (),
    tls: Identity | None = None,
    nodelay: bool = True,
) -> Command:
    """C-FIND.

    :param keys: keyword to value; an empty value asks for the attribute
    :param model: ``-S`` study root, ``-P`` patient root, ``-W`` worklist
    """
    return _scu("findscu", to, calling, [model, *_keys(keys), *extra], (), tls, nodelay)


def movescu(
    to: Target,
    keys: Mapping[str, str],
    destination: str,
    *,
    model: str = "-S",
    calling: str = "MOVESCU",
    extra: Sequence[str] = (),
    nodelay: bool = True,
) -> Command:
    """C-MOVE to another application entity.

    :param destination: its AE title
    """
    return _scu("movescu", to, calling, [model, "-aem", destination, *_keys(keys), *extra], (), None, nodelay)


def getscu(
    to: Target,
    keys: Mapping[str, str],
    into: Path,
    *,
    model: str = "-S",
    calling: str = "GETSCU",
    extra: Sequence[str] = (),
    nodelay: bool = True,
) -> Command:
    """C-GET into a folder."""
    return _scu("getscu", to, calling, [model, "-od", into, *_keys(keys), *extra], (), None, nodelay)


__all__ = [
    "HOST",
    "NAGLE",
    "NODELAY",
    "Address",
    "dcmqrscp",
    "dcmsend",
    "echoscu",
    "findscu",
    "getscu",
    "movescu",
    "storescp",
    "storescu",
    "wlmscpfs",
]
