"""What tests measure: memory that is asked for, and how long the slowest take."""

from __future__ import annotations

import gc
import math
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Allocations:
    """Bytes that this process has asked for since the beginning of :func:`allocations`, all threads together."""

    def __init__(self) -> None:
        self._before = tracemalloc.get_traced_memory()[0]
        self._ended: tuple[int, int] | None = None

    @property
    def now(self) -> int:
        """Bytes held now, beyond those held at the beginning."""
        return self._read()[0] - self._before

    @property
    def peak(self) -> int:
        """The most that was ever held."""
        return self._read()[1] - self._before

    def _read(self) -> tuple[int, int]:
        return tracemalloc.get_traced_memory() if self._ended is None else self._ended

    def end(self) -> None:
        """Count no further."""
        self._ended = tracemalloc.get_traced_memory()


@contextmanager
def allocations() -> Iterator[Allocations]:
    """Count the bytes that are asked for.

    Resident memory tells too little in a small form: what an attack costs may come out of what was freed before it.
    """
    gc.collect()
    tracemalloc.start()
    try:
        allocated = Allocations()
        yield allocated
        allocated.end()
    finally:
        tracemalloc.stop()


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep the cyclic garbage collector out of what is timed: with all that a run of the tests holds, it takes tens of ms."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest of the values that at least so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
