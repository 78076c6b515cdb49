"""Listens for modalities that have become silent: looks every few seconds, tells what changed, writes down what it learnt."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import tzinfo
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel

from asyncdicom.background import BackgroundTasks, to_its_end
from asyncdicom.errors import ArchiveError
from asyncdicom.modality import Modality
from asyncdicom.monitor.history import Table
from asyncdicom.monitor.silence import Listening, Silence
from asyncdicom.monitor.state import ModalityState, States

logger = logging.getLogger(__name__)

# Seconds between two looks; a short expectation is looked at more often.
_EVERY = 15.0
_LOOKS = 4
_SHORTEST = 0.05
# A kill forgets no more than so many seconds.
_WRITE_EVERY = 60.0
# Modalities judged before others on the loop have their turn.
_AT_ONCE = 25

_LISTENED = "INSERT OR REPLACE INTO listened (id, until, hour_began, hour_seconds) VALUES (0, ?, ?, ?)"
_SILENCES = (
    "INSERT OR REPLACE INTO silences (modality, address, heard_at, share, weighed_at, quiet_since, hours_learnt)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_ANEW = "DELETE FROM usual_arrivals WHERE modality = ?"
_USUAL = "INSERT OR REPLACE INTO usual_arrivals (modality, hour, listened, heard) VALUES (?, ?, ?, ?)"


class Vigil:
    """Watches over the silence of the modalities that are expected to send. An async context manager.

    :param states: where it is seen when instances came, and noted who is quiet
    :param on_change: called with the state after a modality fell silent or was heard again
    :param index: where what is learnt is kept; None: it lasts as long as this
    :param clock: seconds since the epoch
    :param zone: whose hours of the week count; None for the local ones
    """

    def __init__(
        self,
        states: States,
        on_change: Callable[[ModalityState], None],
        *,
        index: Table | None = None,
        clock: Callable[[], float] = time.time,
        zone: tzinfo | None = None,
    ) -> None:
        self._states = states
        self._on_change = on_change
        self._index = index
        self._clock = clock
        self._zone = zone
        self._tasks = BackgroundTasks()
        self._listening = Listening(clock(), zone)
        self._silences: dict[str, Silence] = {}
        # Those of whom nothing is expected any more: it may have been a slip, and weeks of learning with it.
        self._dropped: dict[str, Silence] = {}
        # Of whom it is to be told how they are: that changed, or nobody knows whether an earlier life told it.
        self._untold: set[str] = set()
        self._configured = anyio.Event()
        self._ended = False
        # What is written later must not be overtaken by what was written before.
        self._writing = anyio.Lock()

    async def __aenter__(self) -> Self:
        self.configure(state.modality for state in self._states.all())
        if self._index is not None:
            await self._restore(self._index)
        await self.judge()
        await self._tasks.__aenter__()
        self._tasks.start(self._look)
        self._tasks.start(self._keep)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)
        await to_its_end(self.flush())

    def configure(self, modalities: Iterable[Modality]) -> None:
        """Take another inventory. What is known of a modality stays as long as its name, address and AE title do."""
        now = self._clock()
        silences: dict[str, Silence] = {}
        for modality in modalities:
            if modality.arrivals is None:
                continue
            known = self._silences.get(modality.name)
            if known is None and (known := self._dropped.pop(modality.name, None)) is not None:
                known.begin_again(now)
                # It may have been told that it was quiet.
                self._untold.add(modality.name)
            if known is not None and str(known.modality) == str(modality):
                known.expect(modality, modality.arrivals, now)
            else:
                if known is not None:
                    self._untold.add(modality.name)
                state = self._states.get(modality.name)
                heard_at = None if state is None else state.last_received
                known = Silence(modality, modality.arrivals, now, heard_at, zone=self._zone)
            silences[modality.name] = known
        before, self._silences = self._silences, silences
        for name in before.keys() - silences.keys():
            self._dropped[name] = before[name]
            self._note(name, None, None)
        self._configured.set()

    def end(self) -> None:
        """Listen no more: from now on nobody is let in, and silence says nothing."""
        self._ended = True

    async def judge(self) -> None:
        """Look once at everybody."""
        if self._ended:
            return
        look = self._listening.look(self._clock())
        for count, (name, silence) in enumerate(list(self._silences.items()), 1):
            state = self._states.get(name)
            if state is not None and self._silences.get(name) is silence:
                silence.judge(look, state.last_received)
                self._note(name, silence.expected_by, silence.quiet_since)
            if count % _AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
        if self._untold:
            # First, so that a kill in between leaves something to tell, and not a modality that was told and is forgotten.
            await to_its_end(self.flush())
            self._tell()

    def _note(self, name: str, expected_by: float | None, quiet_since: float | None) -> None:
        before = self._states.get(name)
        self._states.silence_judged(name, expected_by=expected_by, quiet_since=quiet_since)
        if before is not None and (before.quiet_since is None) != (quiet_since is None):
            self._untold.add(name)

    def _tell(self) -> None:
        untold, self._untold = sorted(self._untold), set()
        for name in untold:
            if (state := self._states.get(name)) is not None:
                self._on_change(state)

    async def _look(self) -> None:
        while True:
            within = [silence.arrivals.within for silence in self._silences.values() if silence.arrivals.within is not None]
            with anyio.move_on_after(max(_SHORTEST, min([_EVERY, *(seconds / _LOOKS for seconds in within)]))):
                await self._configured.wait()
            self._configured = anyio.Event()
            await self.judge()

    async def _keep(self) -> None:
        while self._index is not None:
            await anyio.sleep(_WRITE_EVERY)
            await to_its_end(self.flush())

    async def flush(self) -> None:
        """Write down what changed. What the index does not take is written the next time."""
        if self._index is not None and (self._silences or self._dropped):
            async with self._writing:
                await self._write(self._index)

    async def _write(self, index: Table) -> None:
        listening = self._listening
        moment = listening.until, listening.hour_began, listening.hour_seconds
        every = (*self._silences.values(), *self._dropped.values())
        changed = [silence for silence in every if silence.changed or silence.learnt]
        silences = [_row(silence) for silence in changed]
        usual = [row for silence in changed for row in _usual_rows(silence)]
        begun = [(silence.modality.name,) for silence in changed if silence.begun]
        noted = [(silence, frozenset(silence.learnt), silence.begun) for silence in changed]
        for silence in changed:
            silence.begun = silence.changed = False
            silence.learnt.clear()

        def job(transaction: Any) -> None:
            transaction.execute(_LISTENED, moment)
            transaction.executemany(_SILENCES, silences)
            transaction.executemany(_ANEW, begun)
            transaction.executemany(_USUAL, usual)

        try:
            await index.write(job)
        except ArchiveError as error:
            logger.warning("what was learnt of arrivals waits for the index: %s", error)
            for silence, hours, is_new in noted:
                silence.changed = True
                silence.begun = is_new
                silence.learnt |= hours

    async def _restore(self, index: Table) -> None:
        """Take up what an earlier life knew.

        :raises ArchiveError: when the index cannot be read
        """
        for until, hour_began, hour_seconds in await index.ask("SELECT until, hour_began, hour_seconds FROM listened"):
            self._listening = Listening(until, self._zone, hour_began, hour_seconds)
        usual: defaultdict[str, list[tuple[int, float, float]]] = defaultdict(list)
        for name, hour, listened, heard in await index.ask("SELECT modality, hour, listened, heard FROM usual_arrivals"):
            usual[name].append((hour, listened, heard))
        for name, address, heard_at, share, weighed_at, quiet_since, hours in await index.ask(
            "SELECT modality, address, heard_at, share, weighed_at, quiet_since, hours_learnt FROM silences"
        ):
            silence = self._silences.get(name)
            if silence is None or str(silence.modality) != address:
                continue
            silence.usual.restored(usual[name], hours)
            silence.restored(heard_at, share, weighed_at, quiet_since)
            if quiet_since is not None:
                self._untold.add(name)
        for (name,) in await index.ask("SELECT modality FROM told_silences WHERE is_quiet"):
            if name in self._silences:
                self._untold.add(name)


def _row(silence: Silence) -> tuple[object, ...]:
    modality = silence.modality
    return (
        modality.name,
        str(modality),
        silence.heard_at,
        silence.share,
        silence.weighed_at,
        silence.quiet_since,
        silence.usual.hours,
    )


def _usual_rows(silence: Silence) -> Iterator[tuple[str, int, float, float]]:
    for hour in sorted(silence.learnt):
        yield silence.modality.name, hour, silence.usual.listened[hour], silence.usual.heard[hour]
