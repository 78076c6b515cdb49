"""The demo as a process of its own, for what wants to look at a service at work."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.running import Server, serving

_METRICS = re.compile(r"^ +metrics +http://([\d.]+:\d+)/metrics$", re.MULTILINE)


@contextmanager
def playing(folder: Path) -> Iterator[str]:
    """Run ``asyncdicom demo`` for the length of the block.

    :param folder: where it keeps what it needs while it runs
    :return: where its web side listens, ``host:port``
    """
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "asyncdicom", "demo"]
    with serving(argv, log=folder / "demo.log", env={"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}, grace=15.0) as demo:
        demo.wait_until(lambda: _METRICS.search(demo.output))
        yield _address(demo)


def _address(demo: Server) -> str:
    found = _METRICS.search(demo.output)
    assert found is not None
    return found[1]
