"""Progress of long work, on standard error, and only where a person looks at it."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import TYPE_CHECKING, Self

from asyncdicom.cli.ending import say
from asyncdicom.cli.rendering import Kind

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Seconds before it shows: what is over sooner needs no progress.
_PATIENCE = 0.5


class Meter:
    """A line that moves while a command works, and is gone when it is done; an async context manager.

    :param what: what is counted
    :param total: how many there will be, None when nobody knows
    :param kind: the form that results are written in
    """

    def __init__(self, what: str, total: int | None = None, *, kind: Kind) -> None:
        self._what = what
        # Lines that come to the same terminal would be torn apart by one that moves; a table comes when it is gone.
        self._wanted = kind == "table" or not os.isatty(1)
        self._total = total
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    async def __aenter__(self) -> Self:
        if self._wanted and os.isatty(2):
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._show)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        counter = [BarColumn(), MofNCompleteColumn()] if self._total is not None else [TextColumn("{task.completed:,.0f}")]
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *counter,
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(self._what, total=self._total, completed=self._count)
        self._progress.start()

    def advance(self, count: int = 1) -> None:
        """So many more."""
        self._count += count
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._count)

    def expect(self, total: int) -> None:
        """There will be so many."""
        self._total = total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)

    def reach(self, count: int) -> None:
        """So many are done."""
        self.advance(count - self._count)

    def say(self, message: str) -> None:
        """Tell the user something on standard error, above the line."""
        if self._progress is not None:
            self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            say(message)
