"""Sweeps keep their rhythm whatever happens to one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from asyncdicom.association.query import Query
from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import Modality
from asyncdicom.monitor.sweep import SweepPlan, Sweeps
from asyncdicom.outcome import Outcome, Reason

CT1 = Modality("ct1", ae_title="CT1", host="127.0.0.1")


class Asked:
    """A fleet of which every answer, delay and failure is known."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.echoes = 0
        self.queries: list[Query] = []
        self.now = 0
        self.most = 0
        self.lent = 0

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Asked]:
        self.lent += 1
        try:
            yield self
        finally:
            self.lent -= 1

    def select(self, *targets: str) -> list[Modality]:
        if targets == ("@gone",):
            raise ConfigurationError("target", "@gone", "no such group")
        return [CT1]

    async def echo(self, targets: Sequence[Modality] | None = None) -> AsyncIterator[Outcome]:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.now -= 1
        self.echoes += 1
        yield Outcome("ct1", "echo", Reason.OK)

    async def find(self, query: Query, targets: Any = None, *, limit: int | None = None) -> AsyncIterator[Any]:
        self.queries.append(query)
        for match in ():
            yield match


async def until(condition: Any) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.005)


async def test_a_sweep_repeats_and_tells_how_long_it_took() -> None:
    asked, ended = Asked(), []
    async with Sweeps(asked.lend, lambda name, seconds: ended.append((name, seconds))) as sweeps:
        sweeps.configure([SweepPlan("echo", "echo", 0.02, ("@all",))])
        await until(lambda: asked.echoes >= 3)
    assert {name for name, _ in ended} == {"echo"}
    assert all(seconds >= 0 for _, seconds in ended)


async def test_a_sweep_that_is_slower_than_its_period_does_not_overlap_itself() -> None:
    asked = Asked(seconds=0.05)
    async with Sweeps(asked.lend) as sweeps:
        sweeps.configure([SweepPlan("echo", "echo", 0.01, ("@all",))])
        await until(lambda: asked.echoes >= 3)
    assert asked.most == 1


# The handler that captures the log reads source files to render the traceback.
@pytest.mark.blocking
async def test_a_sweep_that_raises_goes_on_and_touches_no_other(caplog: pytest.LogCaptureFixture) -> None:
    asked, ended = Asked(), []
    async with Sweeps(asked.lend, lambda name, seconds: ended.append(name)) as sweeps:
        sweeps.configure([SweepPlan("bad", "echo", 0.01, ("@gone",)), SweepPlan("good", "echo", 0.01, ("@all",))])
        await until(lambda: asked.echoes >= 3 and len(caplog.records) >= 2)
    assert set(ended) == {"good"}
    assert {record.__dict__["sweep"] for record in caplog.records} == {"bad"}


async def test_a_find_sweep_asks_for_one_study_that_nobody_has() -> None:
    asked = Asked()
    async with Sweeps(asked.lend) as sweeps:
        sweeps.configure([SweepPlan("find", "find", 0.02, ("@all",))])
        await until(lambda: asked.queries)
    assert asked.queries[0].keys == {"StudyInstanceUID": "2.25.302150742893479437811023984475920351829"}


async def test_a_reload_starts_what_is_new_and_ends_what_is_gone() -> None:
    asked, ended = Asked(), []
    plans = [SweepPlan(name, "echo", 0.02, ("@all",)) for name in ("a", "b", "c")]
    async with Sweeps(asked.lend, lambda name, seconds: ended.append(name)) as sweeps:
        sweeps.configure(plans[:2])
        await until(lambda: {"a", "b"} <= set(ended))
        sweeps.configure(plans[1:])
        assert {plan.name for plan in sweeps.plans} == {"b", "c"}
        await anyio.sleep(0.03)
        ended.clear()
        await until(lambda: ended.count("b") >= 2 and ended.count("c") >= 2)
        assert "a" not in ended


async def test_ending_the_sweeps_gives_the_fleet_back() -> None:
    asked = Asked(seconds=60)
    async with Sweeps(asked.lend) as sweeps:
        sweeps.configure([SweepPlan("echo", "echo", 0.02, ("@all",))])
        await until(lambda: asked.lent == 1)
    assert asked.lent == 0


def test_sweeps_are_entered_before_they_are_configured() -> None:
    with pytest.raises(RuntimeError, match="enter"):
        Sweeps(Asked().lend).configure([])
