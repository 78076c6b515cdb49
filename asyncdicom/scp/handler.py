"""The user's handler: a function that takes a received instance and answers its status."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from pydicom.dataset import Dataset

from asyncdicom.archive import Archive, Arriving
from asyncdicom.association.received import Received

logger = logging.getLogger(__name__)

# ``handler(received, *args)``, ``async def`` or ``def``, returning a DICOM status.
Handler = Callable[..., Awaitable[int | Dataset] | int | Dataset]
# What the storage SCP calls: from a received instance to the status for the wire.
Sink = Callable[[Received], Awaitable[int]]

# PS3.4 Table B.2-1 leaves 0xCxxx to the implementation; these two keep the meaning they have in pynetdicom.
UNHANDLED_EXCEPTION = 0xC211
INVALID_STATUS = 0xC002


def sink_of(handler: Handler | Archive | None, args: Sequence[Any], executor: Executor) -> Sink:
    """Make one awaitable of whatever takes the instances.

    :param handler: a function, an archive, or None
    :param args: further arguments for the function
    :param executor: where a plain function runs
    """
    if handler is None:
        return _nobody
    if isinstance(handler, Archive):
        return IntoArchive(handler)
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None)):  # noqa: B004
        return partial(_await, handler, tuple(args))
    return partial(_run, handler, tuple(args), executor)


async def _nobody(received: Received) -> int:
    logger.error("an instance arrived and there is no handler for it: answered 0x%04X", UNHANDLED_EXCEPTION)
    return UNHANDLED_EXCEPTION


class IntoArchive:
    """Keeps instances in an archive; large ones as they arrive."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def __call__(self, received: Received) -> int:
        """Keep an instance that is here."""
        return int((await self._archive.store(received)).status)

    def begin(self, received: Received) -> Arriving:
        """Begin one whose dataset is still arriving."""
        return self._archive.begin(received)


async def _await(handler: Handler, args: tuple[Any, ...], received: Received) -> int:
    result: Any = handler(received, *args)
    return _status(await result)


async def _run(handler: Handler, args: tuple[Any, ...], executor: Executor, received: Received) -> int:
    return _status(await asyncio.get_running_loop().run_in_executor(executor, _call, handler, received, args))


def _call(handler: Handler, received: Received, args: tuple[Any, ...]) -> object:
    try:
        return handler(received, *args)
    except StopIteration as error:
        # No future takes this one, and whoever waits for that would wait for ever.
        raise RuntimeError("the handler raised StopIteration") from error


def _status(value: object) -> int:
    if isinstance(value, Dataset):
        value = value.get("Status")
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0xFFFF:
        return int(value)
    logger.error("the handler returned %s, which is no DICOM status: answered 0x%04X", type(value).__name__, INVALID_STATUS)
    return INVALID_STATUS
