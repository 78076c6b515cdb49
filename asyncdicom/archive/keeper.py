"""From the loop to the threads that keep instances: bytes synced, named, folder synced, row committed.

Small instances go in batches, one after the other as long as the disk is fast: each system call of a thread gives Python's
lock away and has to get it back, which among many threads takes longer than a fast disk does; and one sync of a folder, like
one commit, is good for as many as there are. The longer the disk makes us wait, the more threads wait for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from asyncdicom.archive import answers
from asyncdicom.archive.contract import Addition, Draft, Index, Steps
from asyncdicom.archive.placement import Placed, Placement
from asyncdicom.archive.threads import hand
from asyncdicom.association.received import Received

# Bytes: what is larger has a thread to itself, for the disk is what it waits for.
_SMALL = 64 << 10
# So long a sync takes, in seconds, before one more thread is worth its while.
_WORTH_A_THREAD = 0.0005
# How much of what the last sync took is taken over into what a sync is believed to take.
_NEWS = 0.1
# How many wait for the last of their batch, at the most.
_MOST = 16


class Attempt:
    """One attempt to keep an instance.

    :param contested: whether it is known that its SOP Instance UID is there already
    :param draft: the dataset, where it does not come with `received`

    :ivar placed: what was done; to be undone unless :meth:`Keeper.keep` returned it. None as long as nothing is
    :ivar steps: how long each step took
    """

    def __init__(self, received: Received, contested: bool = False, draft: Draft | None = None) -> None:
        self.received = received
        self.contested = contested
        self.draft = draft
        self.placed: Placed | None = None
        self.steps: Steps = []
        self.kept: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.indexed_from: float | None = None

    def seconds(self, step: str) -> float:
        """How long a step took; 0 for one that was not taken."""
        return next((seconds for name, seconds in self.steps if name == step), 0.0)

    @property
    def is_small(self) -> bool:
        """Whether others may wait for it."""
        return self.draft is None and self.received.size <= _SMALL


class Keeper:
    """Keeps instances on threads of an executor, and tells the loop that made it.

    :param index: what is told of them; None: nothing
    :param executor: with one thread at least
    :param threads: how many it may have
    """

    def __init__(self, placement: Placement, index: Index | None, executor: ThreadPoolExecutor, threads: int) -> None:
        self._placement = placement
        self._index = index
        self._executor = executor
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Attempt] = deque()
        self._batches = 0
        # What a sync takes, in seconds.
        self._sync = 0.0
        # Guards the three above: who finds nothing more to do goes, and must not miss what comes at that moment.
        self._lock = threading.Lock()

    async def keep(self, attempt: Attempt) -> Placed | None:
        """Make an attempt. Not to be cancelled: it would go on all the same.

        :return: what was done; None when the index knows of another instance that is in the way
        :raises DatasetError: when the instance cannot be understood
        :raises ArchiveError: when it cannot be kept; so does :class:`OSError`
        """
        if attempt.is_small:
            self._add(attempt)
        else:
            hand(self._executor, self._keep, [attempt])
        kept = await attempt.kept
        if attempt.indexed_from is not None:
            attempt.steps.append(("index", time.perf_counter() - attempt.indexed_from))
        return attempt.placed if kept else None

    def _add(self, attempt: Attempt) -> None:
        with self._lock:
            self._waiting.append(attempt)
            if self._batches >= self._worthwhile():
                return
            self._batches += 1
        hand(self._executor, self._keep_batches)

    def _worthwhile(self) -> int:
        """How many threads are to keep batches."""
        return min(self._threads, 1 + int(self._sync / _WORTH_A_THREAD))

    # On threads

    def _keep_batches(self) -> None:
        while True:
            with self._lock:
                share = -(-len(self._waiting) // self._worthwhile())
                batch = [self._waiting.popleft() for _ in range(min(share, _MOST))]
                if not batch:
                    self._batches -= 1
                    return
            self._keep(batch)
            with self._lock:
                for attempt in batch:
                    self._sync += _NEWS * (attempt.seconds("sync") - self._sync)

    def _keep(self, batch: Sequence[Attempt]) -> None:
        """Keep some. Whatever goes wrong is told to those whom it concerns, as an executor does."""
        try:
            self._commit(self._settle([attempt for attempt in batch if self._place(attempt)]))
        except BaseException as error:
            self._tell(batch, error)

    def _place(self, attempt: Attempt) -> bool:
        try:
            attempt.placed = self._placement.place(attempt.received, attempt.contested, attempt.draft)
        except BaseException as error:
            self._tell([attempt], error)
            return False
        attempt.steps = attempt.placed.steps
        return True

    def _settle(self, batch: Sequence[Attempt]) -> list[Attempt]:
        """Make the names durable, and return those for which that was done."""
        settled = []
        folders: dict[str, list[Attempt]] = {}
        for attempt in batch:
            if attempt.placed is None or attempt.placed.unsettled is None:
                settled.append(attempt)
            else:
                folders.setdefault(attempt.placed.unsettled, []).append(attempt)
        for folder, attempts in folders.items():
            started = time.perf_counter()
            try:
                self._placement.settle(folder)
            except BaseException as error:
                self._tell(attempts, error)
                continue
            spent = time.perf_counter() - started
            for attempt in attempts:
                attempt.steps.append(("sync_folder", spent))
            settled += attempts
        return settled

    def _commit(self, batch: Sequence[Attempt]) -> None:
        unknown, additions = [], []
        for attempt in batch:
            placed = attempt.placed
            if self._index is None or placed is None or placed.entry is None:
                unknown.append(attempt)
            else:
                attempt.indexed_from = time.perf_counter()
                additions.append(Addition(placed.entry, placed.supersedes, placed.duplicate, attempt.kept))
        if unknown:
            self._tell(unknown, True)
        if self._index is not None and additions:
            self._index.submit(additions)

    def _tell(self, attempts: Iterable[Attempt], answer: object) -> None:
        answers.give(self._loop, [(attempt.kept, answer) for attempt in attempts])
