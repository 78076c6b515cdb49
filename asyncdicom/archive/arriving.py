"""An instance that is written as it arrives, so that its size costs no memory."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from asyncdicom.archive.contract import OUT_OF_RESOURCES, Draft, Stored
from asyncdicom.association.received import Received
from asyncdicom.background import to_its_end
from asyncdicom.elements import Buffer

# Runs what blocks on a thread of the archive's; what goes wrong there comes back as the answer for the sender.
Run = Callable[[Callable[[], None]], Coroutine[None, None, Stored | None]]


class Arriving:
    """One instance whose dataset is still coming; made by :meth:`asyncdicom.Archive.begin`.

    Whoever began it ends it, by :meth:`keep` or by :meth:`discard`. Until it is kept nobody sees anything of it.

    :ivar received: the instance, without its data
    :ivar size: bytes of the dataset so far
    """

    def __init__(
        self,
        received: Received,
        begin: Callable[[Received], Draft],
        append: Callable[[Draft, Sequence[Buffer]], None],
        run: Run,
        keep: Callable[[Received, Draft, Sequence[tuple[str, float]]], Awaitable[Stored]],
    ) -> None:
        self.received = received
        self.size = 0
        self._begin = begin
        self._append = append
        self._run = run
        self._keep = keep
        self._draft: Draft | None = None
        self._spent = 0.0
        # What its sender is to be told already.
        self._failed: Stored | None = None

    async def append(self, parts: Sequence[Buffer]) -> None:
        """Write more of the dataset; the buffers are not in use any more when this returns, or raises.

        What goes wrong is answered by :meth:`keep`: the sender has to send the rest before it can be told.
        """
        self.size += sum(len(part) for part in parts)
        if self._failed is None:
            started = time.perf_counter()
            self._failed = await to_its_end(self._run(lambda: self._write(parts)))
            self._spent += time.perf_counter() - started
            if self._failed is not None:
                await self.discard()

    def _write(self, parts: Sequence[Buffer]) -> None:
        # On a thread. Kept here at once, so that a caller that is cancelled meanwhile leaves no file behind.
        if self._draft is None:
            self._draft = self._begin(self.received)
        self._append(self._draft, parts)

    async def keep(self) -> Stored:
        """Keep it, as :meth:`asyncdicom.Archive.store` does, and return the status that its sender is to get."""
        try:
            if self._draft is None and self._failed is None:
                await self.append([])
            if self._failed is not None or self._draft is None:
                return self._failed or Stored(OUT_OF_RESOURCES)
            return await self._keep(self.received, self._draft, [("write", self._spent)])
        finally:
            await self.discard()

    async def discard(self) -> None:
        """Let go of it all. Harmless when it is kept, or gone already."""
        draft, self._draft = self._draft, None
        if draft is not None:
            await to_its_end(self._run(draft.discard))
