"""Answers from a thread to those who wait on the loop: all that are ready in one call, because each call wakes the loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

Answer = tuple["asyncio.Future[Any]", object]


def give(loop: asyncio.AbstractEventLoop, answers: Iterable[Answer]) -> None:
    """Set futures, from any thread; an answer that is an exception is raised to whoever waits."""
    # The loop may be closed: nobody waits any more.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_set, list(answers))


def _set(answers: list[Answer]) -> None:
    for future, answer in answers:
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
