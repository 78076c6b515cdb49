"""What the two campaigns of bar S1 share: where their seeds come from, and what nobody may see while they run."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

# Of the long form, by `make soak`.
LONG_TRIALS = int(os.environ.get("ASYNCDICOM_FUZZ_TRIALS", "500000"))
# To play again what has failed: seeds such as "17,4711-4750".
_SEEDS = os.environ.get("ASYNCDICOM_FUZZ_SEEDS", "")
MAX_RSS_GROWTH = 64 << 20


class Watch(logging.Handler):
    """Exceptions that reach the event loop, and faults of ours in the log, each with the seeds that were being played."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: Counter[str] = Counter()
        self.playing: set[int] = set()
        self._suspects: dict[str, set[int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._note(f"{record.name}: {record.getMessage()}")

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what the event loop would print."""
        self._note(f"loop: {context.get('message')}: {context.get('exception')!r}")

    def _note(self, what: str) -> None:
        self.found[what] += 1
        # One that comes again was caused by a seed that is always there.
        self._suspects[what] = self._suspects.get(what, self.playing) & self.playing or set(self.playing)

    @contextmanager
    def play(self, seed: int) -> Iterator[None]:
        """Count a seed among the suspects; when it raises, the seed stands on the exception."""
        self.playing.add(seed)
        try:
            yield
        except Exception as error:
            error.add_note(f"seed {seed}: play it again with ASYNCDICOM_FUZZ_SEEDS={seed}")
            raise
        finally:
            self.playing.discard(seed)

    def check(self) -> None:
        """Fail with what was seen, and with the seeds to look for its cause."""
        told = [
            f"{count} x {what}\n    ASYNCDICOM_FUZZ_SEEDS={','.join(map(str, sorted(self._suspects[what])))}"
            for what, count in self.found.items()
        ]
        assert not told, "\n  ".join(["what nobody may see:", *told])


@contextmanager
def watching() -> Iterator[Watch]:
    """Watch the running loop, and the logs of ours and of asyncio; that of pynetdicom is full of what peers do wrong."""
    watch = Watch()
    loop = asyncio.get_running_loop()
    loggers = [logging.getLogger(name) for name in ("asyncdicom", "asyncio")]
    previous = loop.get_exception_handler()
    loop.set_exception_handler(watch.unhandled)
    for logger in loggers:
        logger.addHandler(watch)
    # Deadlines are short, and looking through all that a test process has loaded takes as long as some of them.
    gc.collect()
    gc.freeze()
    try:
        yield watch
    finally:
        gc.unfreeze()
        for logger in loggers:
            logger.removeHandler(watch)
        loop.set_exception_handler(previous)


def seeds(first: int, count: int) -> list[int]:
    """The seeds to play: so many from the first on, or those that the environment names."""
    if not _SEEDS:
        return list(range(first, first + count))
    named: list[int] = []
    for part in _SEEDS.split(","):
        begin, _, end = part.partition("-")
        named += range(int(begin), int(end or begin) + 1)
    return named


async def resident() -> int:
    """Bytes of memory of this process that are resident."""
    return await anyio.to_thread.run_sync(_resident)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
