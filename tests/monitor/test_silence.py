"""When silence is more than usual: by the configuration, and by what was learnt in simulated years."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from zoneinfo import ZoneInfo

import pytest

from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import Arrivals, Modality, QuietHours, WeekHours
from asyncdicom.monitor.silence import ENOUGH, Listening, Silence

BERLIN = ZoneInfo("Europe/Berlin")
CT1 = Modality("ct1", ae_title="CT1", host="127.0.0.1")
WORKING = (WeekHours.parse("Mon-Fri 07:00-18:00"),)
HOUR, DAY, WEEK = 3600.0, 86400.0, 7 * 86400.0


def at(text: str) -> float:
    """Local time, such as ``2026-03-27 17:50``, in seconds since the epoch."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def local(moment: float | None) -> str | None:
    return None if moment is None else f"{datetime.fromtimestamp(moment, BERLIN):%Y-%m-%d %H:%M}"


def expected(arrivals: Arrivals, heard: str, modality: Modality = CT1) -> str | None:
    """By when something is expected of a modality that was last heard at a time."""
    return local(Silence(modality, arrivals, at(heard), zone=BERLIN).expected_by)


# -- configured ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heard", "by"),
    [
        ("2026-11-18 10:00", "2026-11-18 11:00"),
        ("2026-11-20 17:50", "2026-11-23 07:50"),  # over a weekend
        ("2026-11-21 12:00", "2026-11-23 08:00"),
        ("2026-11-18 06:30", "2026-11-18 08:00"),
        ("2026-03-27 17:50", "2026-03-30 07:50"),  # the clock goes forward in between
        ("2026-10-23 17:50", "2026-10-26 07:50"),  # and back
    ],
)
def test_only_time_in_expected_hours_counts(heard: str, by: str) -> None:
    assert expected(Arrivals(HOUR, WORKING), heard) == by


def test_without_hours_all_time_counts() -> None:
    assert expected(Arrivals(90 * 60), "2026-11-21 23:15") == "2026-11-22 00:45"


def test_hours_over_midnight_belong_to_the_day_on_which_they_begin() -> None:
    nights = (WeekHours.parse("Fri 22:00-06:00"),)
    assert expected(Arrivals(3 * HOUR, nights), "2026-11-20 12:00") == "2026-11-21 01:00"
    assert expected(Arrivals(3 * HOUR, nights), "2026-11-21 05:30") == "2026-11-28 00:30"


def test_hours_of_the_wall_clock_that_do_not_exist_and_that_exist_twice_count_as_long_as_they_last() -> None:
    mornings = (WeekHours.parse("Sun 00:00-06:00"),)
    assert expected(Arrivals(4 * HOUR, mornings), "2026-03-28 12:00") == "2026-03-29 05:00"
    assert expected(Arrivals(4 * HOUR, mornings), "2026-10-24 12:00") == "2026-10-25 03:00"


def test_quiet_hours_and_holidays_do_not_count() -> None:
    lunch = replace(CT1, quiet_hours=(QuietHours.parse("12:00-12:45"),))
    holidays = frozenset({date(2026, 12, 25)})
    assert expected(Arrivals(HOUR, WORKING), "2026-11-18 11:30", lunch) == "2026-11-18 13:15"
    assert expected(Arrivals(HOUR, WORKING, holidays), "2026-12-24 17:50") == "2026-12-28 07:50"


def test_an_expectation_that_is_never_due_has_no_date() -> None:
    assert expected(Arrivals(HOUR, (WeekHours.parse("Mon"),), frozenset()), "2026-11-20 12:00") == "2026-11-23 01:00"
    always = replace(CT1, quiet_hours=(QuietHours.parse("00:00-12:00"), QuietHours.parse("12:00-00:00")))
    assert expected(Arrivals(HOUR), "2026-11-20 12:00", always) is None


@pytest.mark.parametrize(
    "text", ["", "Mon Tue", "Mon-Fry 07:00-18:00", "07:00", "Mon 7-18", "Mon 07:00-07:00", "a b c", "Mon,"]
)
def test_hours_of_the_week_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="Mon-Fri 07:00-18:00"):
        WeekHours.parse(text)


def test_days_are_ranges_and_lists_also_over_the_end_of_the_week() -> None:
    assert WeekHours.parse("sat-Mon,wed").days == {5, 6, 0, 2}
    assert WeekHours.parse("07:00-18:00").days == set(range(7))
    assert WeekHours.parse("Sat,Sun") == WeekHours(frozenset({5, 6}))


def test_the_moment_is_that_which_counting_minute_by_minute_gives() -> None:
    dice = random.Random(7)
    for _ in range(40):
        start = at("2026-03-23 00:00") + 60 * dice.randrange(8 * 24 * 60)
        minutes = dice.randrange(1, 8 * 60)
        days = frozenset(dice.sample(range(7), dice.randrange(3, 8)))
        spans = [QuietHours(*dice.sample(range(0, 24 * 60, 5), 2)) for _ in range(2)]
        hours, off = (WeekHours(days, spans[0]),), (spans[1],) if dice.random() < 0.3 else ()
        modality = replace(CT1, quiet_hours=off)
        count, now = 0, start
        while count < minutes and now < start + 60 * DAY:
            wall = datetime.fromtimestamp(now, BERLIN)
            minute = wall.hour * 60 + wall.minute
            count += any(each.covers(wall.weekday(), minute) for each in hours) and not any(each.covers(minute) for each in off)
            now += 60.0
        found = Silence(modality, Arrivals(minutes * 60.0, hours), start, zone=BERLIN).expected_by
        assert found == (pytest.approx(now, abs=0.01) if count == minutes else None), (hours, off, minutes)


def test_looking_often_or_seldom_finds_the_same() -> None:
    found = set()
    for every in (7.0, 31.0, 60.0, 119.0):
        listening = Listening(at("2026-11-20 16:30"), BERLIN)
        silence = Silence(CT1, Arrivals(HOUR, WORKING), listening.until, zone=BERLIN)
        while silence.quiet_since is None:
            look = listening.look(listening.until + every)
            silence.judge(look, at("2026-11-20 17:20") if look.now > at("2026-11-20 17:20") else None)
        found.add(local(silence.quiet_since))
    assert found == {"2026-11-23 07:20"}


# -- looking ------------------------------------------------------------------------------------------------------------


class Watched:
    """A modality that is looked at every minute."""

    def __init__(self, arrivals: Arrivals, start: str) -> None:
        self.now = at(start)
        self.listening = Listening(self.now, BERLIN)
        self.silence = Silence(CT1, arrivals, self.now, zone=BERLIN)
        self.heard_at: float | None = None

    def until(self, text: str, *, heard: bool = False) -> Silence:
        """Go on to a time, at which something comes or not."""
        while self.now < at(text):
            self.now += 60.0
            if heard and self.now >= at(text):
                self.heard_at = self.now - 1.0
            self.silence.judge(self.listening.look(self.now), self.heard_at)
        return self.silence

    def jump(self, text: str) -> Silence:
        """Be at another time at once: a service that was down, a clock that was set."""
        self.now = at(text)
        self.silence.judge(self.listening.look(self.now), self.heard_at)
        return self.silence


def test_one_that_is_not_heard_in_time_is_quiet_since_then_until_it_is_heard() -> None:
    watched = Watched(Arrivals(HOUR, WORKING), "2026-11-20 16:00")
    assert watched.until("2026-11-20 16:30", heard=True).quiet_since is None
    assert watched.until("2026-11-20 17:29").quiet_since is None
    assert local(watched.until("2026-11-20 17:31").quiet_since) == "2026-11-20 17:29"
    assert local(watched.until("2026-11-23 11:00").quiet_since) == "2026-11-20 17:29"
    silence = watched.until("2026-11-23 11:30", heard=True)
    assert (silence.quiet_since, local(silence.expected_by)) == (None, "2026-11-23 12:29")


def test_one_that_was_never_heard_has_its_time_from_when_it_is_listened_to() -> None:
    watched = Watched(Arrivals(HOUR), "2026-11-20 16:00")
    assert watched.until("2026-11-20 16:59").quiet_since is None
    assert local(watched.until("2026-11-20 17:01").quiet_since) == "2026-11-20 17:00"


@pytest.mark.parametrize("jump", ["2026-11-18 15:00", "2026-11-18 09:00", "2026-12-18 10:30"])
def test_time_in_which_nobody_listened_is_no_silence(jump: str) -> None:
    watched = Watched(Arrivals(HOUR), "2026-11-18 09:00")
    watched.until("2026-11-18 10:00", heard=True)
    watched.until("2026-11-18 10:30")
    silence = watched.jump(jump)
    assert silence.quiet_since is None
    assert silence.expected_by == pytest.approx(at(jump) + HOUR / 2, abs=2)


def test_another_expectation_keeps_the_silence_that_there_was_in_its_proportion() -> None:
    watched = Watched(Arrivals(HOUR), "2026-11-18 10:00")
    watched.until("2026-11-18 10:30")
    watched.silence.expect(CT1, Arrivals(4 * HOUR), watched.now)
    assert local(watched.silence.expected_by) == "2026-11-18 12:30"
    assert watched.until("2026-11-18 13:00").quiet_since is not None
    watched.silence.expect(CT1, Arrivals(8 * HOUR), watched.now)
    assert (watched.silence.quiet_since, local(watched.silence.expected_by)) == (None, "2026-11-18 21:00")


# -- learnt -------------------------------------------------------------------------------------------------------------

Chance = Callable[[datetime], float]


def ct(hour: datetime) -> float:
    """A scanner of a department: Monday to Friday, 07:00 to 18:00, and hardly ever otherwise."""
    if hour.weekday() >= 5 or not 7 <= hour.hour < 18:
        return 0.01
    return {7: 0.6, 12: 0.7, 17: 0.6}.get(hour.hour, 0.95)


def emergency(hour: datetime) -> float:
    """A scanner that never closes, with less to do at night."""
    return 0.97 if 8 <= hour.hour < 22 else 0.6


def sparse(hour: datetime) -> float:
    """A device that sends three studies a week."""
    return 3 / 55 if hour.weekday() < 5 and 8 <= hour.hour < 19 else 0.0


class Life:
    """A modality over years, looked at after each hour and before anything comes in the next."""

    def __init__(
        self, chance: Chance, start: str = "2024-01-01 00:00", *, seed: int = 1, holidays: frozenset[date] = frozenset()
    ) -> None:
        self.chance = chance
        self.now = at(start)
        self.listening = Listening(self.now, BERLIN, longest_gap=HOUR + 1)
        self.silence = Silence(CT1, Arrivals(holidays=holidays), self.now, zone=BERLIN)
        self.heard_at: float | None = None
        self.alarms: list[str] = []
        self._random = random.Random(seed)

    def live(self, seconds: float, chance: Chance | None = None) -> Life:
        """Go on for some time."""
        end = self.now + seconds
        while self.now < end:
            hour = datetime.fromtimestamp(self.now, BERLIN)
            if self._random.random() < (chance or self.chance)(hour):
                self.heard_at = self.now + self._random.random() * 3000.0
            self.now += HOUR
            was = self.silence.quiet_since
            self.silence.judge(self.listening.look(self.now), self.heard_at)
            if self.silence.quiet_since is not None and was is None:
                self.alarms.append(local(self.silence.quiet_since) or "")
        return self

    def be_down(self, seconds: float) -> None:
        """The service does not run."""
        self.now += seconds
        self.silence.judge(self.listening.look(self.now), self.heard_at)

    def delay(self, failure: str) -> float:
        """Hours from a failure until it is quiet, when it was last heard right before."""
        probe = Silence(CT1, Arrivals(), at(failure), usual=self.silence.usual, zone=BERLIN)
        assert probe.expected_by is not None
        return (probe.expected_by - at(failure)) / HOUR


def nothing(hour: datetime) -> float:
    return 0.0


# The figures of docs/operations.md. Failures: in the morning, in the evening, and at the weekend.
@pytest.mark.parametrize(
    ("chance", "morning", "evening", "weekend"),
    [
        (ct, (4.5, 6), (15, 18), (49, 52)),
        (emergency, (4.5, 6), (8, 13), (4.5, 6)),
        (sparse, (14 * 24, 24 * 24), (14 * 24, 24 * 24), (14 * 24, 24 * 24)),
    ],
)
def test_years_bring_no_false_alarm_and_a_failure_is_found_in_time(
    chance: Chance, morning: tuple[float, float], evening: tuple[float, float], weekend: tuple[float, float]
) -> None:
    life = Life(chance).live(2 * 365 * DAY)
    assert life.alarms == []
    for (least, most), failure in (
        (morning, "2026-01-14 08:00"),
        (evening, "2026-01-14 20:00"),
        (weekend, "2026-01-17 10:00"),
    ):
        assert least <= life.delay(failure) <= most, failure


def test_false_alarms_are_not_more_than_the_threshold_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten a year are enough to be counted within a year.
    monkeypatch.setattr("asyncdicom.monitor.silence._FALSE_ALARMS", 10.0)
    life = Life(emergency).live(12 * WEEK)
    life.alarms.clear()
    assert 0 < len(life.live(52 * WEEK).alarms) <= 10


def test_nothing_is_expected_before_two_weeks_were_listened_to() -> None:
    life = Life(ct).live(2 * WEEK - DAY)
    assert life.silence.expected_by is None
    assert life.silence.usual.hours < ENOUGH
    life.live(DAY + HOUR)
    assert life.silence.expected_by is not None
    assert life.live(WEEK, nothing).alarms != []


def test_of_one_that_never_sends_nothing_is_expected() -> None:
    life = Life(nothing).live(20 * WEEK)
    assert (life.silence.expected_by, life.alarms) == (None, [])


def test_a_time_without_anything_is_reported_once_and_does_not_become_a_habit() -> None:
    life = Life(ct).live(12 * WEEK)
    before = life.delay("2025-01-15 10:00")
    life.live(4 * WEEK, nothing)
    assert len(life.alarms) == 1
    life.live(HOUR * 12)
    assert life.silence.quiet_since is None
    assert life.delay("2025-01-15 10:00") == pytest.approx(before, abs=1.0)


def test_one_that_is_dismissed_stays_quiet() -> None:
    life = Life(ct).live(12 * WEEK).live(52 * WEEK, nothing)
    assert len(life.alarms) == 1
    assert life.silence.quiet_since is not None


def test_a_new_habit_is_learnt_within_a_few_weeks() -> None:
    def by_day(hour: datetime) -> float:
        return 0.97 if 8 <= hour.hour < 22 else 0.0

    life = Life(lambda hour: 0.97).live(12 * WEEK)
    assert life.alarms == []
    # Every night of the first two weeks or three, and then no more.
    assert 12 <= len(life.live(4 * WEEK, by_day).alarms) <= 21
    life.alarms.clear()
    assert len(life.live(8 * WEEK, by_day).alarms) <= 1


def test_a_holiday_is_reported_unless_it_is_known_and_changes_little() -> None:
    easter = frozenset({date(2024, 3, 29), date(2024, 4, 1)})

    def closed(hour: datetime) -> float:
        return 0.0 if hour.date() in easter else ct(hour)

    surprised, prepared = Life(ct), Life(ct, holidays=easter)
    for life in (surprised, prepared):
        life.live(14 * WEEK, closed)
    assert [alarm[:10] for alarm in surprised.alarms] == ["2024-03-29"]
    assert prepared.alarms == []
    friday = 4 * 24 + 10
    assert surprised.silence.usual.chance(friday) > 0.7


def test_the_clock_of_the_wall_counts_over_a_change_to_summer_time_and_back() -> None:
    for start in ("2024-01-29 00:00", "2024-08-26 00:00"):
        life = Life(ct, start).live(8 * WEEK)
        hours = [life.silence.usual.chance(2 * 24 + hour) for hour in (6, 7, 17, 18)]
        life.live(4 * WEEK)
        assert [life.silence.usual.chance(2 * 24 + hour) > 0.2 for hour in (6, 7, 17, 18)] == [False, True, True, False]
        assert (hours[0] < 0.1 < hours[1], life.alarms) == (True, [])


def test_the_nights_of_a_service_are_neither_silence_nor_learnt() -> None:
    life = Life(emergency, "2024-01-01 08:00")
    for _ in range(6 * 7):
        life.live(12 * HOUR)
        life.be_down(12 * HOUR)
    assert life.alarms == []
    heard = [life.silence.usual.listened[24 + hour] > 0 for hour in range(24)]
    assert heard == [8 < hour < 20 for hour in range(24)] or heard == [8 <= hour < 20 for hour in range(24)]
    assert life.silence.usual.hours >= ENOUGH
    assert life.silence.expected_by is not None
