"""The event loop of a command, and its signals."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import warnings
from collections.abc import Awaitable, Callable

import anyio

from asyncdicom.cli.ending import TERMINATED

# Their messages, and Python's warnings about data, may quote a dataset.
_SILENCED = ("pydicom", "pynetdicom")


def run(work: Callable[[], Awaitable[int]]) -> int:
    """Run a command on an event loop.

    Ctrl-C and SIGTERM cancel it: it says what it knows and gives everything back.

    :return: the exit status
    :raises KeyboardInterrupt: after Ctrl-C
    """
    terminated = False

    async def supervised() -> int:
        task = asyncio.current_task()

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            if task is not None:
                task.cancel()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, terminate)
        try:
            return await work()
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    _quieten()
    try:
        return anyio.run(supervised)
    except asyncio.CancelledError:
        if terminated:
            return TERMINATED
        raise


def _quieten() -> None:
    logging.basicConfig(level=logging.WARNING, format="asyncdicom: %(message)s", stream=sys.stderr)
    for name in _SILENCED:
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
