"""One attempt to keep an instance: on one thread, from its bytes to the commit of its row."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import Executor

from asyncdicom.archive.contract import Draft, Index, Steps
from asyncdicom.archive.placement import Placed, Placement
from asyncdicom.association.received import Received


class Attempt:
    """What is done for one instance without coming back to the loop: each change of threads costs as much as a sync.

    :param contested: whether it is known that its SOP Instance UID is there already
    :param draft: the dataset, where it does not come with `received`

    :ivar placed: what was done; to be undone unless :meth:`run` returned it. None as long as nothing is
    :ivar steps: how long each step took
    """

    def __init__(
        self, placement: Placement, index: Index | None, received: Received, contested: bool, draft: Draft | None
    ) -> None:
        self.placed: Placed | None = None
        self.steps: Steps = []
        self._placement = placement
        self._index = index
        self._received = received
        self._contested = contested
        self._draft = draft
        self._loop = asyncio.get_running_loop()
        self._added: asyncio.Future[bool] = self._loop.create_future()
        self._indexed_from: float | None = None

    async def run(self, executor: Executor) -> Placed | None:
        """Make the attempt. Not to be cancelled: it would go on all the same.

        :return: what was done; None when the index knows of another instance that is in the way
        :raises DatasetError: when the instance cannot be understood
        :raises ArchiveError: when it cannot be kept; so does :class:`OSError`
        """
        executor.submit(self._place)
        added = await self._added
        if self._indexed_from is not None:
            self.steps.append(("index", time.perf_counter() - self._indexed_from))
        return self.placed if added else None

    def _place(self) -> None:
        try:
            placed = self.placed = self._placement.place(self._received, self._contested, self._draft)
            self.steps = placed.steps
            if self._index is None or placed.entry is None:
                self._tell(None)
            else:
                self._indexed_from = time.perf_counter()
                self._index.submit(placed.entry, placed.supersedes, placed.duplicate, self._added)
        except BaseException as error:
            # All of it goes to whoever waits, as that of any executor's job does.
            self._tell(error)

    def _tell(self, error: BaseException | None) -> None:
        # The loop may be closed: nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._resolve, error)

    def _resolve(self, error: BaseException | None) -> None:
        if self._added.done():
            return
        if error is None:
            self._added.set_result(True)
        else:
            self._added.set_exception(error)
