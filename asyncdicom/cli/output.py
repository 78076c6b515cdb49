"""Standard output: written by a thread of its own, so that a slow reader slows the archives down and never the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from types import TracebackType
from typing import Self

import anyio

from asyncdicom.cli.ending import ReaderGone, say

STANDARD_OUTPUT = 1

# Characters that may wait to be written; beyond it the command waits for its reader.
_WAITING = 1 << 20
# Lines are collected for so long, in seconds, or until there are so many characters: waking the thread for each of ten thousand
# matches costs more than writing them.
_COLLECTED_FOR = 0.005
_COLLECTED = 1 << 16
# Seconds that a reader has to take what is left when the command was interrupted.
_LAST_CHANCE = 1.0


class Output:
    """Lines of text on their way to a file descriptor; an async context manager, left once everything is written.

    :param descriptor: where to
    """

    def __init__(self, descriptor: int = STANDARD_OUTPUT) -> None:
        self._descriptor = descriptor
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._size = 0
        self._closing = False
        self._error: OSError | None = None
        self._last_words: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._relieved = asyncio.Event()
        self._finished = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        # A daemon: nobody can interrupt a write to a reader that has stopped reading, and the process must end all the same.
        threading.Thread(target=self._write, name="output", daemon=True).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._wake()
        try:
            if kind is None:
                await self._finished.wait()
                self._check()
            else:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_LAST_CHANCE):
                    await self._finished.wait()
        finally:
            if self._error is None:
                for message in self._last_words:
                    say(message)

    def say(self, message: str) -> None:
        """Tell the user something on standard error, when everything else is written: on a terminal it stands below it."""
        self._last_words.append(message)

    async def line(self, text: str) -> None:
        """Write a line; waits while the reader is far behind.

        :raises ReaderGone: when nobody reads any more
        """
        self.put(text)
        if self._size > _WAITING or self._error is not None:
            await self._catch_up()

    def put(self, text: str) -> None:
        """Write a line without waiting, for what is said once."""
        with self._changed:
            self._lines.append(text)
            self._size += len(text)
        if self._size > _COLLECTED:
            self._wake()
        elif self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(_COLLECTED_FOR, self._wake)

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._changed:
            self._changed.notify()

    async def _catch_up(self) -> None:
        while self._size > _WAITING and self._error is None:
            self._relieved.clear()
            await self._relieved.wait()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise ReaderGone from self._error

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._closing:
                    self._changed.wait()
                lines, self._lines, self._size = self._lines, [], 0
            if not lines:
                break
            self._tell(self._relieved)
            try:
                # A path that is not UTF-8 ends up as the escape that JSON has for it.
                self._write_all("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
            except OSError as error:
                self._error = error
                self._tell(self._relieved)
                break
        self._tell(self._finished)

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _tell(self, event: asyncio.Event) -> None:
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(event.set)
        except RuntimeError:
            # The loop is closed: the command did not wait for a reader that had stopped reading.
            return
