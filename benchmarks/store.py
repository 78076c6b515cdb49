"""P1 to P4, P12 and P16: instances stored a second and what they cost, with DCMTK's storescu as the senders."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.comparison import Bar, Figure, Readings, Row, Trial, at_least, at_most
from benchmarks.processes import NAGLE, NODELAY, Environment, Failed, cpu_seconds, seconds
from benchmarks.receivers import receiver
from benchmarks.setting import Setting, Size
from tests.peers.programs import program

BARS = ("P1", "P2", "P3", "P4", "P12", "P16")

_COUNTS: dict[Size, int] = {"small": 2_000, "large": 1_000}
# Long enough for a 99.9th percentile: two samples at most each 10 ms.
_WATCHED: dict[Size, int] = {"small": 10_000, "large": 2_000}
# At storescp each takes 40 ms and more.
_STALLING = {"ours": 600, "single": 60}
_SENDERS = 8


@contextmanager
def trials(setting: Setting) -> Iterator[list[Trial]]:
    """The trials; instances are made when they are first sent."""
    yield [
        *(_nothing_synced(setting, size) for size in _COUNTS),
        *(_durable(setting, size) for size in _COUNTS),
        _stalled(setting),
        *(_watched(setting, size) for size in _WATCHED),
    ]


def _sent(size: Size, count: int, senders: int, words: str) -> str:
    kilobytes = {"small": "9 KB", "large": "525 KB"}[size]
    return f"{count:,} of {kilobytes}, {senders} sender{'s' if senders > 1 else ''}, {words}"


def _nothing_synced(setting: Setting, size: Size) -> Trial:
    names = ("ours", "storescp", "tutorial", "discarding", "ignoring")
    sides = {name: partial(_load, setting, name, "none", size, _COUNTS[size]) for name in names}
    sent = _sent(size, _COUNTS[size], _SENDERS, "TCP_NODELAY=1")

    def row(name: str, what: str, reading: str, bar: Bar | None, ours: str, theirs: str, peer: str) -> Row:
        return Row(
            name=f"{name.partition(' ')[0]} {size} {name.partition(' ')[2]}",
            what=what,
            bar=bar,
            ours=Figure(ours, reading),
            theirs=Figure(theirs, reading),
            peer=peer,
            setting=sent,
        )

    rate, cost = "stores /s, durability none", "receiver's CPU ms a store, durability none"
    fast = at_least({"small": 1.1, "large": 1.0}[size])
    faster = at_least({"small": 4.0, "large": 3.0}[size])
    rows = [
        row("P1 none", rate, "rate", fast, "ours", "storescp", "storescp --fork"),
        row("P1 limit", "stores /s, nothing written", "rate", None, "discarding", "ignoring", "storescp --fork --ignore"),
        row("P3 none", rate, "rate", faster, "ours", "tutorial", "pynetdicom's tutorial"),
        row("P16 none", cost, "cpu", at_most(1.5), "ours", "storescp", "storescp --fork"),
        row("P16 limit", "the same, nothing written", "cpu", None, "discarding", "ignoring", "storescp --fork --ignore"),
    ]
    return Trial(sides, rows)


def _durable(setting: Setting, size: Size) -> Trial:
    names = ("ours", "Orthanc", "tutorial")
    sides = {name: partial(_load, setting, name, "full", size, _COUNTS[size]) for name in names}
    rows = [
        Row(
            name=f"{name} {size} full",
            what="stores /s, durability full",
            bar=at_least(bar),
            ours=Figure("ours", "rate"),
            theirs=Figure(side, "rate"),
            peer=peer,
            setting=_sent(size, _COUNTS[size], _SENDERS, "TCP_NODELAY=1"),
        )
        for name, bar, side, peer in (
            ("P2", {"small": 3.0, "large": 2.0}[size], "Orthanc", "Orthanc as it comes (fsync, index)"),
            ("P3", 2.5, "tutorial", "pynetdicom's tutorial (no fsync)"),
        )
    ]
    return Trial(sides, rows)


def _stalled(setting: Setting) -> Trial:
    sides = {
        name: partial(_load, setting, name, "full", "small", count, senders=1, environment=NAGLE)
        for name, count in _STALLING.items()
    }
    row = Row(
        name="P4 small full",
        what="stores /s, durability full",
        bar=at_least(30),
        ours=Figure("ours", "rate"),
        theirs=Figure("single", "rate"),
        peer="storescp",
        setting=_sent(
            "small", _STALLING["ours"], 1, f"DCMTK's default (Nagle on); {_STALLING['single']} to storescp (TCP_NODELAY=1)"
        ),
    )
    return Trial(sides, [row])


def _watched(setting: Setting, size: Size) -> Trial:
    row = Row(
        name=f"P12 {size} full",
        what="event loop's lag, 99.9th percentile",
        bar=at_most(50),
        ours=Figure("ours", "lag"),
        unit="ms",
        setting=_sent(size, _WATCHED[size], _SENDERS, "TCP_NODELAY=1; a task sleeps 5 ms again and again"),
    )
    return Trial({"ours": partial(_lag, setting, size)}, [row], warm_up=False)


def _storm(port: int, paths: list[Path], senders: int, environment: Environment) -> float:
    storescu = [program("storescu"), "-aec", "BENCH", "127.0.0.1", str(port)]
    return seconds([[*storescu, *paths[number::senders]] for number in range(senders)], environment)


def _load(
    setting: Setting,
    name: str,
    durability: str,
    size: Size,
    count: int,
    senders: int = _SENDERS,
    environment: Environment = NODELAY,
) -> Readings:
    paths = setting.instances(size, count)
    with setting.folder(durability) as folder, receiver(name, folder, durability) as receiving:
        before = cpu_seconds(receiving.pid)
        if name in ("ours", "discarding"):
            with setting.profiled(receiving.pid, f"store {name} {size} {durability}"):
                spent = _storm(receiving.port, paths, senders, environment)
        else:
            spent = _storm(receiving.port, paths, senders, environment)
        cpu = cpu_seconds(receiving.pid) - before
        receiving.check(count)
    return {"rate": count / spent, "cpu": 1000 * cpu / count}


def _lag(setting: Setting, size: Size) -> Readings:
    paths = setting.instances(size, _WATCHED[size])
    with setting.folder("full") as folder:
        file = folder / "lag"
        with receiver("ours", folder, "full", file) as receiving:
            started = time.monotonic()
            _storm(receiving.port, paths, _SENDERS, NODELAY)
            ended = time.monotonic()
            receiving.check(len(paths))
        samples = array("d", file.read_bytes())
    # The clock is the machine's, the same in every process.
    late = sorted(delay for at, delay in zip(samples[::2], samples[1::2], strict=True) if started <= at <= ended)
    if not late:
        raise Failed("the receiver's loop never came to its watch")
    return {"lag": 1000 * late[min(len(late) - 1, int(0.999 * len(late)))], "samples": len(late)}
