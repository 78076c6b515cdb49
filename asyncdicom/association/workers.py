"""The threads on which pynetdicom's blocking calls run; never the loop's default ones."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# One operation under way needs one thread. The fleet's limits decide how many; this is only the end of the world.
_MAX_WORKERS = 4096


class Workers(ThreadPoolExecutor):
    """A thread pool that knows how many of its threads are at work.

    :ivar busy: calls that are under way
    """

    def __init__(self, max_workers: int, thread_name_prefix: str) -> None:
        super().__init__(max_workers, thread_name_prefix)
        self.busy = 0
        self._counting = threading.Lock()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function on a thread."""
        return super().submit(self._counted, functools.partial(fn, *args, **kwargs))

    def _counted(self, call: Callable[[], T]) -> T:
        with self._counting:
            self.busy += 1
        try:
            return call()
        finally:
            with self._counting:
                self.busy -= 1


@functools.cache
def workers() -> Workers:
    """The pool of this process."""
    return Workers(_MAX_WORKERS, "asyncdicom-bridge")
