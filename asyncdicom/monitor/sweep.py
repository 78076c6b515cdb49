"""Sweeps: the same question to the same modalities, again and again."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio
from anyio.abc import TaskGroup

from asyncdicom.modality import Modality
from asyncdicom.modality import QuietHours as PartOfTheDay
from asyncdicom.outcome import Outcome, Rejected

if TYPE_CHECKING:
    from asyncdicom.monitor.modules import ProbeModule

logger = logging.getLogger(__name__)

# A first sweep soon, but those of many services that were started together not at once.
_FIRST_WITHIN = 1.0
# Periods that drift apart do not ask one modality for several things in the same moment for ever.
_JITTER = 0.05
_LOCAL_LIMIT_EXCEEDED = Rejected(2, 3, 2)
_MOST_LEFT_OUT = 8


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What is asked of whom, and how often.

    :ivar name: its label in the metrics
    :ivar every: seconds from start to start
    :ivar targets: names, ``@group`` or ``@all``
    :ivar module: what is asked in place of the operation's own question; it is of that operation
    :ivar between: parts of the day, local time, in which alone it runs; none for always
    """

    name: str
    operation: Literal["echo", "find"]
    every: float
    targets: tuple[str, ...]
    module: ProbeModule | None = None
    between: tuple[PartOfTheDay, ...] = ()


class Asked(Protocol):
    """What a sweep needs of a fleet."""

    def select(self, *targets: str) -> list[Modality]:
        """The modalities that the targets name."""

    def echo(self, targets: Sequence[Modality] | None = None, *, require: Sequence[str] = ()) -> AsyncIterator[Outcome]:
        """Ask each for an echo."""

    def find(self, query: Any, targets: Sequence[Modality] | None = None, *, limit: int | None = None) -> Any:
        """Ask each for matches."""


class Restraint:
    """Leaves out of a sweep whoever is not to be asked now.

    A modality that says "local limit exceeded" (PS3.8 Table 9-21) has no association to spare: asking as often as before
    keeps it from its own work. It is left out of the next turn, then of two, four, up to eight, until it takes one again.

    :param now: local time
    """

    def __init__(self, now: Callable[[], time.struct_time] = time.localtime) -> None:
        self._now = now
        # By sweep and modality: how many turns it is still left out of, and of how many it was the last time.
        self._left_out: dict[tuple[str, str], tuple[int, int]] = {}

    def is_its_time(self, between: Sequence[PartOfTheDay]) -> bool:
        """Whether a sweep that runs in parts of the day alone is to run now."""
        now = self._now()
        return not between or any(part.cover(now) for part in between)

    def whom(self, sweep: str, modalities: Sequence[Modality]) -> list[Modality]:
        """Those that are to be asked in this turn."""
        now = self._now()
        return [one for one in modalities if not one.is_quiet(now) and self._has_its_turn(sweep, one.name)]

    def _has_its_turn(self, sweep: str, name: str) -> bool:
        left, last = self._left_out.get((sweep, name), (0, 0))
        if left:
            self._left_out[sweep, name] = left - 1, last
        return not left

    def heard(self, sweep: str, outcome: Outcome) -> None:
        """Take an outcome into account."""
        key = sweep, outcome.modality
        if outcome.rejected == _LOCAL_LIMIT_EXCEEDED:
            _, last = self._left_out.get(key, (0, 0))
            turns = min(_MOST_LEFT_OUT, 2 * last or 1)
            self._left_out[key] = turns, turns
        else:
            self._left_out.pop(key, None)


class Sweeps:
    """Runs sweeps, each in its own task; one of them never overlaps itself.

    Outcomes reach the observers by way of the fleet. A sweep that raises is logged and goes on at its next turn, and the
    others do not notice.

    :param fleet: lends the fleet that is current, for the length of one run
    :param ended: told the name of a sweep and how many seconds it took
    :param restraint: who is left out of a turn
    """

    def __init__(
        self,
        fleet: Callable[[], AbstractAsyncContextManager[Asked]],
        ended: Callable[[str, float], None] = lambda name, seconds: None,
        restraint: Restraint | None = None,
    ) -> None:
        self._restraint = restraint or Restraint()
        self._fleet = fleet
        self._ended = ended
        self._running: dict[SweepPlan, anyio.CancelScope] = {}
        self._tasks: TaskGroup | None = None

    @property
    def plans(self) -> tuple[SweepPlan, ...]:
        """What runs now."""
        return tuple(self._running)

    async def __aenter__(self) -> Sweeps:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> bool | None:
        assert self._tasks is not None, "a sweep ends after it began"  # noqa: S101
        self._tasks.cancel_scope.cancel()
        self._running.clear()
        return await self._tasks.__aexit__(*exception)

    def configure(self, plans: Sequence[SweepPlan]) -> None:
        """Start what is new and end what is gone. What stays keeps its rhythm.

        :raises RuntimeError: before ``async with``
        """
        if self._tasks is None:
            raise RuntimeError("enter the sweeps first: async with sweeps")
        for plan in set(self._running) - set(plans):
            self._running.pop(plan).cancel()
        for plan in plans:
            if plan not in self._running:
                scope = self._running[plan] = anyio.CancelScope()
                self._tasks.start_soon(self._repeat, plan, scope, name=f"sweep {plan.name}")

    async def _repeat(self, plan: SweepPlan, scope: anyio.CancelScope) -> None:
        with scope:
            await anyio.sleep(random.uniform(0, min(_FIRST_WITHIN, plan.every / 2)))  # noqa: S311
            due = time.monotonic()
            while True:
                started = time.monotonic()
                try:
                    await self._run(plan)
                except Exception:
                    logger.exception("a sweep failed, and is tried again at its next turn", extra={"sweep": plan.name})
                else:
                    self._ended(plan.name, time.monotonic() - started)
                now = time.monotonic()
                # Turns that passed while it ran are left out: catching up would only add to what made it late.
                missed = int(max(0.0, now - due) // plan.every)
                due += (missed + 1) * plan.every
                jitter = random.uniform(-_JITTER, _JITTER) * plan.every  # noqa: S311
                await anyio.sleep(max(0.0, due + jitter - now))

    async def _run(self, plan: SweepPlan) -> None:
        if not self._restraint.is_its_time(plan.between):
            return
        module = plan.module
        async with self._fleet() as fleet:
            modalities = self._restraint.whom(plan.name, fleet.select(*plan.targets))
            if not modalities:
                return
            if module is not None:
                modalities = [module.calls(modality) for modality in modalities]
            if plan.operation == "echo":
                asked = fleet.echo(modalities) if module is None else fleet.echo(modalities, require=module.require_contexts)
                async for outcome in asked:
                    self._restraint.heard(plan.name, outcome)
            else:
                query = _cheapest_query() if module is None else module.query(datetime.now().astimezone().date())
                matches = fleet.find(query, modalities, limit=1)
                async for _ in matches:
                    pass
                for outcome in matches.outcomes.values():
                    self._restraint.heard(plan.name, outcome)


def _cheapest_query() -> Any:
    # Imported when it is needed: a service that only echoes does not decode datasets.
    from asyncdicom.association.query import Query
    from asyncdicom.upper_layer.implementation import IMPLEMENTATION_CLASS_UID

    # One lookup by the unique key of a study that no archive has: it proves that the database answers, reads no
    # patient's data, and costs the peer next to nothing.
    return Query(level="study", keys={"StudyInstanceUID": IMPLEMENTATION_CLASS_UID})
