"""Sweeps: the same question to the same modalities, again and again."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import anyio
from anyio.abc import TaskGroup

from asyncdicom.modality import Modality
from asyncdicom.outcome import Outcome

logger = logging.getLogger(__name__)

# A first sweep soon, but those of many services that were started together not at once.
_FIRST_WITHIN = 1.0
# Periods that drift apart do not ask one modality for several things in the same moment for ever.
_JITTER = 0.05


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What is asked of whom, and how often.

    :ivar name: its label in the metrics
    :ivar every: seconds from start to start
    :ivar targets: names, ``@group`` or ``@all``
    """

    name: str
    operation: Literal["echo", "find"]
    every: float
    targets: tuple[str, ...]


class Asked(Protocol):
    """What a sweep needs of a fleet."""

    def select(self, *targets: str) -> list[Modality]:
        """The modalities that the targets name."""

    def echo(self, targets: Sequence[Modality] | None = None) -> AsyncIterator[Outcome]:
        """Ask each for an echo."""

    def find(self, query: Any, targets: Sequence[Modality] | None = None, *, limit: int | None = None) -> Any:
        """Ask each for matches."""


class Sweeps:
    """Runs sweeps, each in its own task; one of them never overlaps itself.

    Outcomes reach the observers by way of the fleet. A sweep that raises is logged and goes on at its next turn, and the
    others do not notice.

    :param fleet: lends the fleet that is current, for the length of one run
    :param ended: told the name of a sweep and how many seconds it took
    """

    def __init__(
        self,
        fleet: Callable[[], AbstractAsyncContextManager[Asked]],
        ended: Callable[[str, float], None] = lambda name, seconds: None,
    ) -> None:
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
        async with self._fleet() as fleet:
            modalities = fleet.select(*plan.targets)
            if plan.operation == "echo":
                async for _ in fleet.echo(modalities):
                    pass
            else:
                async for _ in fleet.find(_cheapest_query(), modalities, limit=1):
                    pass


def _cheapest_query() -> Any:
    # Imported when it is needed: a service that only echoes does not decode datasets.
    from asyncdicom.association.query import Query
    from asyncdicom.upper_layer.implementation import IMPLEMENTATION_CLASS_UID

    # One lookup by the unique key of a study that no archive has: it proves that the database answers, reads no
    # patient's data, and costs the peer next to nothing.
    return Query(level="study", keys={"StudyInstanceUID": IMPLEMENTATION_CLASS_UID})
