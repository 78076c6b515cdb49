"""P14: instances sent a second, to DCMTK's storescp."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.comparison import Figure, Readings, Row, Trial, at_least
from benchmarks.processes import NODELAY, Failed, module, seconds
from benchmarks.receivers import receiver
from benchmarks.setting import Setting, Size
from tests.peers.programs import program

BARS = ("P14",)

_COUNT = 1_000
# Sendings of a single instance of which the median is what starting up takes.
_SINGLE = 3
_SIZES: tuple[Size, ...] = ("small", "large")


@contextmanager
def trials(setting: Setting) -> Iterator[list[Trial]]:
    """The trials; instances are made when they are first sent."""
    yield [_trial(setting, size) for size in _SIZES]


def _trial(setting: Setting, size: Size) -> Trial:
    words = f"{_COUNT:,} of {'9' if size == 'small' else '525'} KB, one association, TCP_NODELAY=1 on both ends"
    rows = [
        Row(
            name=f"P14 {size}{form}",
            what="instances sent /s",
            bar=at_least(1.0) if not form else None,
            ours=Figure("ours", reading),
            theirs=Figure("storescu", reading),
            peer="storescu",
            setting=f"{words}, start-up counted {counted} on both",
        )
        for form, reading, counted in (("", "rate", "out"), (" whole", "whole", "in"))
    ]
    return Trial({name: partial(_send, setting, size, name) for name in ("ours", "storescu")}, rows)


def _send(setting: Setting, size: Size, name: str) -> Readings:
    paths = setting.instances(size, _COUNT)
    single = statistics.median(_seconds(setting, name, paths[:1]) for _ in range(_SINGLE))
    spent = _seconds(setting, name, paths)
    if spent <= single:
        raise Failed(f"{_COUNT} instances took no longer than one: {spent:.3f} s")
    return {"rate": (_COUNT - 1) / (spent - single), "whole": _COUNT / spent}


def _seconds(setting: Setting, name: str, paths: list[Path]) -> float:
    with TemporaryDirectory(dir=setting.memory) as folder, receiver("single", Path(folder)) as receiving:
        if name == "ours":
            command = module("asyncdicom", "send", f"BENCH@127.0.0.1:{receiving.port}")
        else:
            command = [program("storescu"), "-aec", "BENCH", "127.0.0.1", str(receiving.port)]
        spent = seconds([[*command, *paths]], NODELAY)
        receiving.check(len(paths))
    return spent
