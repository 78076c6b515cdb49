"""An open index, and waiting for what others do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asyncdicom.archive.sqlite import SQLiteIndex
from asyncdicom.observe import Observer


class Counted(Observer):
    """An observer that counts.

    :ivar delivered: for each target
    :ivar failed: attempts, for each target
    :ivar completed: studies
    :ivar pending: what the outbox held last
    """

    def __init__(self) -> None:
        self.delivered: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self.completed = 0
        self.pending: tuple[int, float | None] | None = None

    def event_delivered(self, target: str) -> None:
        self.delivered[target] = self.delivered.get(target, 0) + 1

    def event_failed(self, target: str) -> None:
        self.failed[target] = self.failed.get(target, 0) + 1

    def study_completed(self) -> None:
        self.completed += 1

    def outbox(self, pending: int, oldest: float | None) -> None:
        self.pending = (pending, oldest)


async def eventually(condition: Callable[[], Any] | Callable[[], Awaitable[Any]], seconds: float = 10) -> None:
    """Return once a condition holds; it is asked in a thread unless it is asynchronous."""
    with anyio.fail_after(seconds):
        while True:
            result = await anyio.to_thread.run_sync(condition)
            if await result if isinstance(result, Awaitable) else result:
                return
            await anyio.sleep(0.02)


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[SQLiteIndex]:
    opened = SQLiteIndex(tmp_path / "index.db", durability="none", root=tmp_path)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
def counted() -> Counted:
    return Counted()
