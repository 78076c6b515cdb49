"""Who wants to know that something changed: pages that are open, and programs that listen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from asyncdicom.observe import Observer
from asyncdicom.outcome import Outcome


class Changed:
    """What changed since one listener last asked: never more than there are modalities."""

    def __init__(self) -> None:
        self._modalities: set[str] = set()
        self._storage = False
        self._event = asyncio.Event()
        self._ended = asyncio.Event()

    def tell(self, modality: str | None) -> None:
        """A modality changed; None: the storage SCP did something."""
        if modality is None:
            self._storage = True
        else:
            self._modalities.add(modality)
        self._event.set()

    def wake(self) -> None:
        """Have whoever waits, or rests, go on now and from now on."""
        self._ended.set()
        self._event.set()

    async def wait(self, seconds: float) -> tuple[set[str], bool]:
        """Wait until something changed, or the time is over.

        :return: the names of the modalities that changed, and whether the storage SCP did something
        """
        await _at_most(seconds, self._event)
        changed = self._modalities, self._storage
        self._modalities, self._storage = set(), False
        self._event.clear()
        return changed

    async def rest(self, seconds: float) -> None:
        """Let changes come together for some time."""
        await _at_most(seconds, self._ended)


async def _at_most(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Changes(Observer):
    """Tells listeners; on the loop alone.

    :param most: listeners at once
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._listeners: set[Changed] = set()

    @property
    def is_full(self) -> bool:
        """Whether there are as many listeners as there may be."""
        return len(self._listeners) >= self._most

    @contextlib.contextmanager
    def listening(self) -> Iterator[Changed]:
        """Be told for the length of the block."""
        changed = Changed()
        self._listeners.add(changed)
        try:
            yield changed
        finally:
            self._listeners.discard(changed)

    def _tell(self, modality: str | None) -> None:
        for listener in self._listeners:
            listener.tell(modality)

    def silence_changed(self, modality: str) -> None:
        """One has become quiet, or is heard again."""
        self._tell(modality)

    def operation_ended(self, outcome: Outcome) -> None:
        """One was asked."""
        self._tell(outcome.modality)

    def breaker_changed(self, modality: str, is_open: bool) -> None:
        """One is left alone, or asked again."""
        self._tell(modality)

    def store_ended(self, calling_ae_title: str, status: int, size: int, seconds: float) -> None:
        """An instance came."""
        if self._listeners:
            self._tell(None)

    def scp_association_opened(self, calling_ae_title: str, peer_address: str) -> None:
        """Somebody calls."""
        self._tell(None)

    def scp_association_closed(self, calling_ae_title: str, peer_address: str) -> None:
        """Somebody is gone."""
        self._tell(None)
