"""Files read before their turn comes, so that nobody waits for the disk while the network waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from asyncdicom.association.instance import Instance
from asyncdicom.association.workers import workers

# Read in one hop to a thread: so many, of so many bytes together. What is larger alone is read as it is sent.
_COUNT = 16
_BYTES = 1 << 20


class ReadAhead:
    """Instances in their order, small ones with their dataset in memory; two helpings at the most are held.

    :param instances: what is to be sent
    """

    def __init__(self, instances: Sequence[Instance]) -> None:
        self._left = deque(instances)
        self._ready: deque[Instance] = deque()
        self._reading: asyncio.Future[list[Instance]] | None = None

    async def next(self) -> Instance:
        """The next instance.

        :raises IndexError: when there is none
        """
        if not self._ready:
            self._ready.extend(await (self._reading or self._read()))
            self._reading = self._read() if self._left else None
        return self._ready.popleft()

    def _read(self) -> asyncio.Future[list[Instance]]:
        helping: list[Instance] = []
        size = 0
        while self._left and len(helping) < _COUNT and (not helping or size + self._left[0].size <= _BYTES):
            helping.append(self._left.popleft())
            size += helping[-1].size
        return asyncio.get_running_loop().run_in_executor(workers(), _load, helping)


def _load(instances: list[Instance]) -> list[Instance]:
    return [_loaded(instance) if instance.size <= _BYTES else instance for instance in instances]


def _loaded(instance: Instance) -> Instance:
    try:
        return instance.loaded()
    except OSError:
        # Sending it will fail in the same way, and say so for this instance.
        return instance
