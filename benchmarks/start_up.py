"""P13: what importing and asking for help take."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.comparison import Figure, Readings, Row, Trial, at_most
from benchmarks.processes import seconds
from benchmarks.setting import Setting

BARS = ("P13",)

_TIMES = 10


@contextmanager
def trials(_: Setting) -> Iterator[list[Trial]]:
    """The trial."""
    commands = {
        "import": [sys.executable, "-c", "import asyncdicom"],
        "help": [str(Path(sys.executable).with_name("asyncdicom")), "--help"],
        "pynetdicom": [sys.executable, "-c", "import pynetdicom"],
    }
    rows = [
        Row(
            name=f"P13 {name}",
            what=f"{what}, ms",
            bar=at_most(bar),
            ours=Figure(name, "time"),
            theirs=Figure("pynetdicom", "time"),
            peer="import pynetdicom",
            setting=f"whole processes, the mean of {_TIMES}",
        )
        for name, what, bar in (("import", "import asyncdicom", 1.0), ("help", "asyncdicom --help", 1.3))
    ]
    yield [Trial({name: partial(_time, command) for name, command in commands.items()}, rows)]


def _time(command: list[str]) -> Readings:
    return {"time": 1000 * sum(seconds([command]) for _ in range(_TIMES)) / _TIMES}
