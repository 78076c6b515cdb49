"""What is learnt of arrivals, and who is quiet, outlives the process; and every change is said once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from asyncdicom.archive.sqlite import SQLiteIndex
from asyncdicom.errors import ArchiveError
from asyncdicom.modality import Arrivals, Modality
from asyncdicom.monitor.state import ModalityState, States
from asyncdicom.monitor.vigil import Vigil

HOUR = 3600.0
START = 1_700_000_000.0
CT1 = Modality("ct1", ae_title="CT1", host="127.0.0.1", arrivals=Arrivals(HOUR))
MR1 = Modality("mr1", ae_title="MR1", host="127.0.0.1", arrivals=Arrivals())
PACS = Modality("pacs", ae_title="PACS", host="127.0.0.1")


class Life:
    """One life of a service, as far as it listens."""

    def __init__(self, folder: Path, *modalities: Modality, start: float = START) -> None:
        self.now = start
        self.states = States(modalities, clock=lambda: self.now)
        self.index = SQLiteIndex(folder / "index.db", durability="none")
        self.said: list[tuple[str, bool]] = []
        self.vigil = Vigil(self.states, self._say, index=self.index, clock=lambda: self.now)

    def _say(self, state: ModalityState) -> None:
        self.said.append((state.modality.name, state.quiet_since is not None))

    async def __aenter__(self) -> Life:
        await self.index.open()
        await self.vigil.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.vigil.__aexit__(None, None, None)
        await self.index.close()

    async def listen(self, seconds: float, *heard: str, every: float = 60.0) -> None:
        """Let time go by, at the end of which some are heard."""
        for _ in range(int(seconds / every)):
            self.now += every
            await self.vigil.judge()
        for title in heard:
            self.states.store_ended(title, 0x0000, 1, 0.0)
        await self.vigil.judge()

    def of(self, name: str) -> ModalityState:
        state = self.states.get(name)
        assert state is not None
        return state


async def test_a_silence_goes_on_over_a_restart_without_the_time_in_between(tmp_path: Path, no_leaks: object) -> None:
    async with Life(tmp_path, CT1, PACS) as first:
        await first.listen(600, "CT1")
        await first.listen(1800)
        assert first.of("ct1").expected_by == pytest.approx(START + 600 + HOUR)
        assert first.of("pacs").expected_by is None
        heard_at = first.now - 1800
    async with Life(tmp_path, CT1, PACS, start=START + 10 * HOUR) as second:
        second.states.received_before({"CT1": heard_at})
        await second.listen(1740)
        assert second.of("ct1").quiet_since is None
        await second.listen(120)
        assert second.of("ct1").quiet_since == pytest.approx(START + 10 * HOUR + 1800)
        assert second.said == [("ct1", True)]


async def test_one_that_is_quiet_stays_so_over_a_restart_until_it_is_heard(tmp_path: Path) -> None:
    async with Life(tmp_path, CT1) as first:
        await first.listen(2 * HOUR)
        quiet_since = first.of("ct1").quiet_since
        assert quiet_since == pytest.approx(START + HOUR)
    async with Life(tmp_path, CT1, start=first.now + 60.0) as second:
        assert second.of("ct1").quiet_since == quiet_since
        # Nobody knows whether the first life had the time to tell: the relay does, and tells nothing twice.
        assert second.said == [("ct1", True)]
        await second.listen(600, "CT1")
        assert (second.of("ct1").quiet_since, second.said[1:]) == (None, [("ct1", False)])
    async with Life(tmp_path, CT1, start=second.now + 60.0) as third:
        assert (third.of("ct1").quiet_since, third.said) == (None, [])


async def test_who_is_quiet_is_written_down_before_it_is_told(tmp_path: Path) -> None:
    async with Life(tmp_path, CT1) as first:
        await first.listen(HOUR - 60)
        assert await first.index.ask("SELECT count(*) FROM silences") == [(0,)]
        await first.listen(120)
        assert await first.index.ask("SELECT quiet_since FROM silences") == [(START + HOUR,)]
        await first.listen(60, "CT1")
        assert await first.index.ask("SELECT quiet_since FROM silences") == [(None,)]


async def test_what_was_learnt_outlives_the_process(tmp_path: Path) -> None:
    start = START
    for _ in range(3):
        async with Life(tmp_path, MR1, start=start) as life:
            for _ in range(7 * 24):
                await life.listen(HOUR, "MR1")
            start = life.now + 30.0
            expected_by = life.of("mr1").expected_by
    assert expected_by is not None
    async with Life(tmp_path, MR1, start=start + 30 * HOUR) as after:
        assert after.of("mr1").expected_by == pytest.approx(expected_by + 30 * HOUR, abs=2 * HOUR)
        rows = await after.index.ask("SELECT count(*) FROM usual_arrivals")
        assert rows == [(168,)]


async def test_another_device_under_the_same_name_begins_anew_for_good(tmp_path: Path) -> None:
    async with Life(tmp_path, MR1) as life:
        for _ in range(30):
            await life.listen(HOUR, "MR1")
    moved = replace(MR1, host="127.0.0.2")
    async with Life(tmp_path, moved, start=life.now) as other:
        assert other.of("mr1").expected_by is None
        await other.listen(120)
    async with Life(tmp_path, moved, start=other.now) as other:
        assert await other.index.ask("SELECT modality, hours_learnt FROM silences") == [("mr1", 0)]
        assert await other.index.ask("SELECT count(*) FROM usual_arrivals") == [(0,)]


async def test_what_the_index_does_not_take_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: SQLiteIndex, job: object) -> None:
        raise ArchiveError("the disk is full")

    async with Life(tmp_path, MR1) as life:
        await life.listen(3 * HOUR, "MR1")
        with monkeypatch.context() as full:
            full.setattr(SQLiteIndex, "write", refuse)
            await life.vigil.flush()
    async with Life(tmp_path, MR1, start=life.now + 10) as life:
        assert await life.index.ask("SELECT count(*), sum(listened) FROM usual_arrivals") == [(2, 2.0)]


async def test_a_reload_keeps_what_is_known_and_says_that_nothing_is_expected_any_more(tmp_path: Path) -> None:
    async with Life(tmp_path, CT1, MR1) as life:
        await life.listen(2 * HOUR)
        assert life.said == [("ct1", True)]
        for arrivals, said in ((Arrivals(10 * HOUR), [("ct1", False)]), (None, [])):
            life.said.clear()
            modalities = [replace(CT1, arrivals=arrivals), MR1]
            life.states.configure(modalities)
            life.vigil.configure(modalities)
            await life.vigil.judge()
            assert life.said == said
        assert (life.of("ct1").expected_by, life.of("ct1").quiet_since) == (None, None)
        life.states.configure([PACS])
        life.vigil.configure([PACS])
        await life.listen(HOUR)


async def test_one_that_is_quiet_and_of_which_nothing_is_expected_any_more_is_said_to_be_so_no_more(tmp_path: Path) -> None:
    async with Life(tmp_path, CT1) as life:
        await life.listen(2 * HOUR)
        life.states.configure([replace(CT1, arrivals=None)])
        life.vigil.configure([replace(CT1, arrivals=None)])
        await life.vigil.judge()
        assert life.said == [("ct1", True), ("ct1", False)]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
async def test_one_that_left_the_inventory_while_it_was_quiet_is_told_of_when_it_is_back(tmp_path: Path, address: str) -> None:
    back = replace(CT1, host=address)
    async with Life(tmp_path, CT1) as life:
        await life.listen(2 * HOUR)
        for modalities in ([PACS], [PACS, back]):
            life.states.configure(modalities)
            life.vigil.configure(modalities)
            await life.vigil.judge()
        assert life.said == [("ct1", True), ("ct1", False)]
        await life.listen(2 * HOUR)
        assert life.said[2:] == [("ct1", True)]


async def test_another_device_is_not_as_quiet_as_the_one_before(tmp_path: Path) -> None:
    async with Life(tmp_path, CT1) as life:
        await life.listen(2 * HOUR)
        moved = [replace(CT1, host="127.0.0.2")]
        life.states.configure(moved)
        life.vigil.configure(moved)
        await life.vigil.judge()
        assert life.said == [("ct1", True), ("ct1", False)]


async def test_what_was_learnt_of_one_outlives_a_slip_in_the_inventory(tmp_path: Path) -> None:
    async with Life(tmp_path, MR1) as life:
        for _ in range(15 * 24):
            await life.listen(HOUR, "MR1")
        assert life.of("mr1").expected_by is not None
        for modalities in ([PACS], [PACS, MR1]):
            life.states.configure(modalities)
            life.vigil.configure(modalities)
            await life.listen(20 * HOUR)
        # The time in which nothing was expected of it is no silence.
        assert (life.of("mr1").quiet_since or 0) > life.now - 12 * HOUR
    async with Life(tmp_path, MR1, start=life.now) as life:
        assert await life.index.ask("SELECT count(*) FROM usual_arrivals") == [(168,)]


async def test_whoever_listens_no_more_judges_nobody(tmp_path: Path) -> None:
    async with Life(tmp_path, CT1) as life:
        life.vigil.end()
        await life.listen(3 * HOUR)
        assert life.said == []


async def test_without_an_index_it_is_learnt_for_as_long_as_the_process_lasts(no_leaks: object) -> None:
    now = START
    states = States([CT1], clock=lambda: now)
    said: list[str] = []
    async with Vigil(states, lambda state: said.append(state.modality.name), clock=lambda: now) as vigil:
        for _ in range(70):
            now += 60.0
            await vigil.judge()
    assert said == ["ct1"]
