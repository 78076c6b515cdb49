"""A restart forgets nothing of a modality: outcomes, failures, and since when it is up or down."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncdicom.archive.sqlite import SQLiteIndex
from asyncdicom.errors import ArchiveError
from asyncdicom.modality import Modality
from asyncdicom.monitor.history import History
from asyncdicom.monitor.state import KEPT_CHANGES, KEPT_FAILURES, KEPT_OUTCOMES, Failure, ModalityState, Sample, States
from asyncdicom.outcome import Operation, Outcome, Reason, Status

CT1 = Modality("ct1", ae_title="CT1", host="127.0.0.1")
CT2 = Modality("ct2", ae_title="CT2", host="127.0.0.1")


class Life:
    """One life of a service, as far as it watches modalities."""

    def __init__(self, folder: Path, *modalities: Modality, start: float = 1000.0) -> None:
        self.now = start
        self.states = States(modalities, clock=lambda: self.now)
        self._modalities = modalities
        self._index = SQLiteIndex(folder / "index.db")

    async def __aenter__(self) -> Life:
        await self._index.open()
        self.history = await History(self._index).__aenter__()
        self.states.remember(await self.history.past(self._modalities))
        self.states.on_outcome = self.history.note
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.history.__aexit__(None, None, None)
        await self._index.close()

    def ask(self, name: str, reason: Reason = Reason.OK, operation: Operation = "echo", detail: str = "") -> None:
        self.now += 30.0
        status = Status(0x0110) if reason is Reason.FAILURE_STATUS else None
        self.states.operation_ended(Outcome(name, operation, reason, status=status, duration=0.01, detail=detail))

    def of(self, name: str) -> ModalityState:
        state = self.states.get(name)
        assert state is not None
        return state


async def test_a_restart_forgets_nothing(tmp_path: Path, no_leaks: object) -> None:
    async with Life(tmp_path, CT1, CT2) as first:
        for _ in range(5):
            first.ask("ct1")
        first.ask("ct1", Reason.FAILURE_STATUS, "find", "the peer answered with status 0x0110")
        first.ask("ct1", Reason.CONNECT_REFUSED, "echo", "nothing listens")
        first.ask("ct2")
        before = first.of("ct1")
    async with Life(tmp_path, CT1, CT2, start=9000.0) as second:
        after = second.of("ct1")
        assert (after.samples, after.failed, after.changes) == (before.samples, before.failed, before.changes)
        assert (after.condition, after.since, after.failures) == ("down", before.since, 2)
        assert after.last_success == before.last_success
        assert after.telling is not None
        assert {outcome.detail for outcome in after.latest.values()} == {
            "the peer answered with status 0x0110",
            "nothing listens",
        }
        assert second.of("ct2").condition == "up"
        second.ask("ct1", Reason.OK, "find")
        second.ask("ct1", Reason.OK)
        assert second.of("ct1").changes[-1].condition == "up"
    async with Life(tmp_path, CT1, CT2, start=20_000.0) as third:
        assert [change.condition for change in third.of("ct1").changes] == ["up", "down", "up"]
        stretches = third.of("ct1").stretches(third.now)
        assert stretches[1][1] == stretches[2][0].at - stretches[1][0].at


async def test_failures_are_kept_longer_than_successes_push_them_out(tmp_path: Path) -> None:
    async with Life(tmp_path, CT1) as life:
        life.ask("ct1", Reason.ABORTED, detail="long ago")
        for _ in range(3 * KEPT_OUTCOMES):
            life.ask("ct1")
        assert all(sample.reason is Reason.OK for sample in life.of("ct1").samples)
    async with Life(tmp_path, CT1) as life:
        assert [failure.detail for failure in life.of("ct1").failed] == ["long ago"]
        assert len(life.of("ct1").samples) == KEPT_OUTCOMES


async def test_what_is_kept_has_an_end_and_its_order_over_restarts(tmp_path: Path) -> None:
    for start in range(3):
        async with Life(tmp_path, CT1, start=start * 100_000.0) as life:
            for number in range(50):
                life.ask("ct1", Reason.ABORTED if number % 2 else Reason.OK, detail=f"{start} {number}")
            expected = life.of("ct1")
    async with Life(tmp_path, CT1, start=900_000.0) as life:
        state = life.of("ct1")
        assert (state.samples, state.failed, state.changes) == (expected.samples, expected.failed, expected.changes)
        assert (len(state.samples), len(state.failed), len(state.changes)) == (KEPT_OUTCOMES, KEPT_FAILURES, KEPT_CHANGES)


async def test_another_device_under_the_same_name_begins_anew(tmp_path: Path) -> None:
    async with Life(tmp_path, CT1) as life:
        life.ask("ct1", Reason.ABORTED)
    moved = Modality("ct1", ae_title="CT1", host="127.0.0.2")
    async with Life(tmp_path, moved) as life:
        assert life.of("ct1") == ModalityState(moved)
        life.ask("ct1")
    async with Life(tmp_path, moved) as life:
        assert [sample.reason for sample in life.of("ct1").samples] == [Reason.OK]


async def test_what_the_index_does_not_take_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: SQLiteIndex, job: object) -> None:
        raise ArchiveError("the disk is full")

    async with Life(tmp_path, CT1) as life:
        life.ask("ct1")
        with monkeypatch.context() as full:
            full.setattr(SQLiteIndex, "write", refuse)
            await life.history.flush()
        life.ask("ct1", Reason.ABORTED)
    async with Life(tmp_path, CT1) as life:
        assert [sample.reason for sample in life.of("ct1").samples] == [Reason.OK, Reason.ABORTED]


async def test_a_restart_goes_on_counting_outcomes_in_a_row(tmp_path: Path, no_leaks: object) -> None:
    patient = Modality("ct1", ae_title="CT1", host="127.0.0.1", down_after=3, up_after=2)
    told = ""
    # Each letter is an outcome, each word a life.
    for life_number, word in enumerate([".", "x", "xb", "x", ".", "x.", "."]):
        async with Life(tmp_path, patient, start=10_000.0 * (life_number + 1)) as life:
            before = life.of("ct1")
            for mark in word:
                life.ask("ct1", {".": Reason.OK, "x": Reason.ABORTED, "b": Reason.BREAKER_OPEN}[mark])
            told += life.of("ct1").condition[0]
            known = life.of("ct1").standings
        async with Life(tmp_path, patient) as life:
            assert life.of("ct1").standings == known
            assert life.of("ct1").condition[0] == told[-1]
    assert told == "uuudddu"
    assert before.condition == "down"
    async with Life(tmp_path, patient) as life:
        assert [change.condition for change in life.of("ct1").changes] == ["up", "down", "up"]


@pytest.mark.parametrize(("reasons", "told"), [((Reason.OK, Reason.ABORTED), "down"), ((Reason.ABORTED, Reason.OK), "up")])
async def test_other_numbers_in_a_row_do_not_change_what_was_told(
    tmp_path: Path, reasons: tuple[Reason, ...], told: str
) -> None:
    """An event ``modality.down`` was sent: one that says the contrary is sent by an outcome, and not left out by a restart."""
    async with Life(tmp_path, CT1) as life:
        for reason in reasons:
            life.ask("ct1", reason)
        assert life.of("ct1").condition == told
    patient = Modality("ct1", ae_title="CT1", host="127.0.0.1", down_after=5, up_after=5)
    async with Life(tmp_path, patient) as life:
        assert life.of("ct1").condition == told
    async with Life(tmp_path, CT1, start=9000.0) as life:
        life.ask("ct1", reasons[0])
        assert life.of("ct1").changes[-1].condition != told


async def test_half_a_surrogate_keeps_nothing_else_from_being_written(tmp_path: Path) -> None:
    """No index takes one, and a batch is written as a whole or not at all."""
    odd = Modality("ct\ud83d", ae_title="CT", host="ct\udc00.example")
    async with Life(tmp_path, odd, CT1) as life:
        life.ask("ct1")
        life.ask(odd.name, Reason.ABORTED, detail="said \ud83d and no more")
        await life.history.flush()
    async with Life(tmp_path, odd, CT1) as life:
        assert [sample.reason for sample in life.of("ct1").samples] == [Reason.OK]
        assert [failure.detail for failure in life.of(odd.name).failed] == ["said ? and no more"]


async def test_a_history_takes_text_that_no_state_has_looked_at(tmp_path: Path) -> None:
    failure = Failure(1.0, "echo", Reason.ABORTED, None, "said \udc00")
    sample = Sample(1.0, "echo", Reason.ABORTED, 0.1)
    async with Life(tmp_path, CT1) as life:
        life.history.note(ModalityState(CT1, samples=(sample,), failed=(failure,)), False)
    async with Life(tmp_path, CT1) as life:
        assert [failure.detail for failure in life.of("ct1").failed] == ["said ?"]
