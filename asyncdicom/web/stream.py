"""Server-sent events: what changed, as it changes (``/api/events``)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio.lowlevel

from asyncdicom.monitor.changes import Changed, Changes

# Seconds without a change after which a comment shows that the stream is alive: proxies cut what is silent.
_HEARTBEAT = 15.0
# Changes of so many seconds go together: a sweep of thousands is one burst, and nobody reads faster.
_TOGETHER = 1.0
# A sweep over thousands changes all of them: so many are encoded and written at once, which takes a millisecond or two.
_BATCH = 100
# What a browser waits before it asks again, in milliseconds.
_RETRY = 3000

Snapshot = Callable[[str], dict[str, Any] | None]


class Streams:
    """The streams that are open.

    :param modality: a modality as JSON by its name; None for one that has left
    :param storage: the storage SCP as JSON
    """

    def __init__(self, changes: Changes, modality: Snapshot, storage: Callable[[], dict[str, Any]]) -> None:
        self._changes = changes
        self._modality = modality
        self._storage = storage
        self._open: set[Changed] = set()
        self._is_over = False

    @property
    def is_full(self) -> bool:
        """Whether there are as many as there may be."""
        return self._is_over or self._changes.is_full

    def end(self) -> None:
        """Let all of them end by themselves."""
        self._is_over = True
        for changed in self._open:
            changed.wake()

    async def events(self, *, brief: bool = False) -> AsyncIterator[str]:
        """Events in their form on the wire, until the server ends or the reader goes.

        :param brief: tell only who changed, all in one event: enough for a page, which asks for what it shows
        """
        with self._changes.listening() as changed:
            self._open.add(changed)
            try:
                yield f"retry: {_RETRY}\n\n"
                while not self._is_over:
                    names, stored = await changed.wait(_HEARTBEAT)
                    if not names and not stored:
                        yield ": nothing happened\n\n"
                    if brief:
                        if names or stored:
                            yield _event("changed", {"modalities": sorted(names), "storage": stored})
                        names, stored = set(), False
                    for batch in _batches(sorted(names)):
                        yield "".join([self._change_of(name) for name in batch])
                        # Writing what there is room for does not wait: the others on the loop have their turn in between.
                        await anyio.lowlevel.checkpoint()
                    if stored:
                        yield _event("storage", self._storage())
                    if not self._is_over:
                        await changed.rest(_TOGETHER)
            finally:
                self._open.discard(changed)

    def _change_of(self, name: str) -> str:
        told = self._modality(name)
        return _event("modality" if told is not None else "gone", told or {"name": name})


def _batches(names: list[str]) -> Iterator[list[str]]:
    return (names[start : start + _BATCH] for start in range(0, len(names), _BATCH))


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
