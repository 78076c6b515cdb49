"""Sweeps keep their rhythm whatever happens to one of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from asyncdicom.association.query import Query
from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import Modality, QuietHours
from asyncdicom.monitor.modules import ProbeModule
from asyncdicom.monitor.sweep import Restraint, SweepPlan, Sweeps
from asyncdicom.outcome import Outcome, Reason, Rejected

CT1 = Modality("ct1", ae_title="CT1", host="127.0.0.1")


class NoMatches:
    """What an archive that has nothing answers."""

    def __init__(self) -> None:
        self.outcomes = {"ct1": Outcome("ct1", "find", Reason.OK)}

    def __aiter__(self) -> NoMatches:
        return self

    async def __anext__(self) -> Any:
        raise StopAsyncIteration


class Asked:
    """A fleet of which every answer, delay and failure is known."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.echoes = 0
        self.modalities = [CT1]
        self.queries: list[Query] = []
        self.called: list[str | None] = []
        self.required: Sequence[str] = ()
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
        return self.modalities

    async def echo(self, targets: Sequence[Modality] | None = None, *, require: Sequence[str] = ()) -> AsyncIterator[Outcome]:
        self.called = [modality.calling_ae_title for modality in targets or ()]
        self.required = require
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.now -= 1
        self.echoes += 1
        yield Outcome("ct1", "echo", Reason.OK)

    def find(self, query: Query, targets: Any = None, *, limit: int | None = None) -> NoMatches:
        self.queries.append(query)
        return NoMatches()


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


REFUSED = Outcome("ct1", "echo", Reason.REJECTED_TRANSIENT, rejected=Rejected(2, 3, 2))
NOON = time.struct_time((2026, 1, 10, 12, 0, 0, 5, 10, 0))
NIGHT = time.struct_time((2026, 1, 10, 23, 30, 0, 5, 10, 0))


def _turns(restraint: Restraint, count: int, answer: Outcome) -> str:
    asked = ""
    for _ in range(count):
        whom = restraint.whom("echo", [CT1])
        asked += "x" if whom else "."
        if whom:
            restraint.heard("echo", answer)
    return asked


def test_a_modality_that_has_no_association_to_spare_is_asked_less_and_less() -> None:
    restraint = Restraint(lambda: NOON)
    assert _turns(restraint, 27, REFUSED) == "x.x..x....x........x......."
    restraint.heard("echo", Outcome("ct1", "echo", Reason.OK))
    assert _turns(restraint, 4, Outcome("ct1", "echo", Reason.OK)) == "xxxx"


@pytest.mark.parametrize("rejected", [Rejected(1, 1, 3), Rejected(2, 3, 1), Rejected()])
def test_any_other_answer_changes_nothing(rejected: Rejected) -> None:
    assert _turns(Restraint(lambda: NOON), 5, Outcome("ct1", "echo", Reason.ABORTED, rejected=rejected)) == "xxxxx"


def test_one_sweep_that_is_turned_away_does_not_slow_another() -> None:
    restraint = Restraint(lambda: NOON)
    restraint.heard("echo", REFUSED)
    assert restraint.whom("find", [CT1]) == [CT1]


def test_nobody_is_asked_in_its_quiet_hours() -> None:
    sleeper = Modality("ct2", ae_title="CT2", host="127.0.0.1", quiet_hours=(QuietHours.parse("22:00-06:00"),))
    assert Restraint(lambda: NOON).whom("echo", [CT1, sleeper]) == [CT1, sleeper]
    assert Restraint(lambda: NIGHT).whom("echo", [CT1, sleeper]) == [CT1]


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("22:00-06:00", ("22:00", "23:59", "00:00", "05:59"), ("06:00", "21:59")),
        ("8:30 - 9:00", ("08:30", "08:59"), ("09:00", "08:29")),
    ],
)
def test_quiet_hours_may_go_over_midnight(text: str, inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    def minute(clock: str) -> int:
        return int(clock[:2]) * 60 + int(clock[3:])

    hours = QuietHours.parse(text)
    assert all(hours.covers(minute(clock)) for clock in inside)
    assert not any(hours.covers(minute(clock)) for clock in outside)


@pytest.mark.parametrize("text", ["", "22-6", "25:00-06:00", "22:60-06:00", "06:00-06:00", "22:00", "x"])
def test_quiet_hours_that_are_none_are_a_mistake(text: str) -> None:
    with pytest.raises(ConfigurationError, match="quiet_hours"):
        QuietHours.parse(text)


async def test_a_sweep_leaves_out_whoever_is_not_to_be_asked() -> None:
    asked, ended = Asked(), []
    restraint = Restraint(lambda: NIGHT)
    night = (QuietHours.parse("22:00-06:00"),)
    asked.modalities = [Modality("ct1", ae_title="CT1", host="127.0.0.1", quiet_hours=night)]
    async with Sweeps(asked.lend, lambda name, seconds: ended.append(name), restraint) as sweeps:
        sweeps.configure([SweepPlan("echo", "echo", 0.02, ("@all",))])
        await until(lambda: len(ended) >= 3)
    assert asked.echoes == 0


async def test_a_sweep_asks_by_a_module() -> None:
    asked = Asked()
    ris = ProbeModule("ris", "worklist", keys=(("Modality", "CT"),))
    takes = ProbeModule("takes-ct", "echo", calling_ae_title="MONITOR", require_contexts=("1.2.840.10008.5.1.4.1.1.2",))
    async with Sweeps(asked.lend) as sweeps:
        sweeps.configure([SweepPlan("ris", "find", 0.02, ("@all",), ris), SweepPlan("takes", "echo", 0.02, ("@all",), takes)])
        await until(lambda: asked.queries and asked.echoes)
    assert (asked.queries[0].model, asked.queries[0].keys) == ("worklist", {"Modality": "CT"})
    assert (asked.called, asked.required) == (["MONITOR"], ("1.2.840.10008.5.1.4.1.1.2",))


async def test_a_sweep_runs_in_its_parts_of_the_day_alone_and_its_turns_go_on() -> None:
    asked, ended = Asked(), []
    now = time.strptime("2026-03-02 05:59", "%Y-%m-%d %H:%M")
    restraint = Restraint(lambda: now)
    day = (QuietHours.parse("06:00-20:00"), QuietHours.parse("23:00-01:00"))
    async with Sweeps(asked.lend, lambda name, seconds: ended.append(name), restraint) as sweeps:
        sweeps.configure([SweepPlan("day", "echo", 0.01, ("@all",), between=day)])
        await until(lambda: len(ended) >= 3)
        assert asked.echoes == 0
        for at in ("06:00", "00:59"):
            before, now = asked.echoes, time.strptime(f"2026-03-02 {at}", "%Y-%m-%d %H:%M")
            await until(lambda before=before: asked.echoes > before)
