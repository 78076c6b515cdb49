"""When the silence of a modality is more than it usually is. No clock, no tasks, no index: times come from the caller.

A modality that answers C-ECHO and sends nothing is a fault that nothing else notices. What is expected of it stands in the
configuration, or is learnt: how often something comes in each hour of the local week. Silence has a weight. A second of it
weighs one second when something is expected at that time (configured), or the logarithm of how improbable it is (learnt). When
as much has come together as is tolerated, the modality is quiet. Time in which nobody listened weighs nothing and teaches
nothing: it is not counted as silence that the service was down, or that the clock was set.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, tzinfo

from asyncdicom.modality import Arrivals, Modality

HOURS = 168
_HOUR = 3600.0
_WEEK = HOURS * _HOUR
# An hour is learnt from when somebody listened to this part of it.
_LISTENED = 0.9
# An observation counts half after six weeks: a scanner that moved house is known again after a few of them.
_FADING = 0.5 ** (1 / 6)
# Two weeks of hours before anything is expected.
ENOUGH = 2 * HOURS
# How many times a year chance alone may make a modality seem quiet that is not, whether it sends much or little.
_FALSE_ALARMS = 0.1
# Never less than odds of 1 to 100, however seldom something comes.
_LEAST = math.log(100.0)
# What is expected later than this is not worth a date, in seconds.
_HORIZON = 60 * 86400.0


class Usual:
    """What is usual of one modality, for each hour of the local week.

    :ivar listened: how often somebody listened in each hour; older weeks count less
    :ivar heard: how often something came then
    :ivar hours: how many hours were learnt from
    """

    def __init__(self) -> None:
        self.listened = array("d", bytes(8 * HOURS))
        self.heard = array("d", bytes(8 * HOURS))
        self.hours = 0
        self._tolerated: float | None = None

    def restored(self, rows: Iterable[tuple[int, float, float]], hours: int) -> None:
        """Take up what an earlier life learnt.

        :param rows: hour of the week, listened, heard
        """
        self.hours, self._tolerated = hours, None
        for hour, listened, heard in rows:
            self.listened[hour], self.heard[hour] = listened, heard

    def learn(self, hour: int, heard: bool) -> None:
        """Take one hour into account.

        :param hour: of the week, 0 to 167
        :param heard: whether anything came in it
        """
        self.listened[hour] = self.listened[hour] * _FADING + 1.0
        self.heard[hour] = self.heard[hour] * _FADING + heard
        self.hours += 1
        self._tolerated = None

    def chance(self, hour: int) -> float:
        """How probable it is that something comes in an hour: below what was seen, because that was not much."""
        return self.heard[hour] / (self.listened[hour] + 1.0)

    def weight(self, hour: int) -> float:
        """What the silence of a whole hour weighs: the logarithm of its improbability."""
        return -math.log1p(-self.chance(hour))

    @property
    def tolerated(self) -> float:
        """The weight of silence that is more than chance; infinite while too little is known.

        Each hour in which something comes begins a silence, and each of those may pass the threshold by chance. One that sends
        more has more of them, and gets a higher threshold, so that false alarms are as rare with every modality.
        """
        if self._tolerated is None:
            silences = 52 * sum(map(self.chance, range(HOURS)))
            known = self.hours >= ENOUGH and silences > 0
            self._tolerated = max(_LEAST, math.log(silences / _FALSE_ALARMS)) if known else math.inf
        return self._tolerated


@dataclass(frozen=True, slots=True)
class Look:
    """One moment in which silence is judged.

    :ivar now: seconds since the epoch
    :ivar unheard_since: since when nobody had listened until now; None when somebody did
    :ivar ended: the beginning of an hour that has ended, and to which somebody listened
    """

    now: float
    unheard_since: float | None = None
    ended: float | None = None


@dataclass(slots=True)
class Listening:
    """When somebody listened.

    :ivar until: the last look, in seconds since the epoch
    :ivar hour_began: the beginning of the hour that is under way
    :ivar hour_seconds: how much of it somebody listened
    :ivar longest_gap: a longer time between two looks is one in which nobody listened, in seconds
    """

    until: float
    zone: tzinfo | None = None
    hour_began: float = 0.0
    hour_seconds: float = 0.0
    longest_gap: float = 120.0

    def look(self, now: float) -> Look:
        """Go on to another moment."""
        before, self.until = self.until, now
        began = _hour_of(datetime.fromtimestamp(now, self.zone), now)
        listened = 0.0 <= now - before <= self.longest_gap
        if began == self.hour_began:
            self.hour_seconds += now - before if listened else 0.0
            return Look(now, None if listened else before)
        ended, seconds = self.hour_began, self.hour_seconds
        self.hour_began, self.hour_seconds = began, 0.0
        if not listened:
            return Look(now, before)
        self.hour_seconds = now - max(began, before)
        seconds += max(0.0, began - before)
        return Look(now, None, ended if seconds >= _LISTENED * _HOUR else None)


def _hour_of(local: datetime, at: float) -> float:
    # Whole seconds, so that every moment of an hour gives the same.
    return math.floor(at) - local.minute * 60.0 - local.second


@dataclass(slots=True)
class Silence:
    """The silence of one modality, and what was learnt of it.

    :ivar heard_at: when it was last heard, in seconds since the epoch; None for never
    :ivar share: of the silence that is tolerated, how much there was at ``weighed_at``
    :ivar expected_by: when all of it will have come together; None when nothing is expected
    :ivar quiet_since: when it had; None while it had not
    :ivar usual: what was learnt, also while the configuration says what is expected
    :ivar begun: whether it is not known to an index yet
    :ivar changed: whether it differs from what was last written down
    :ivar learnt: the hours of the week of which the same holds
    """

    modality: Modality
    arrivals: Arrivals
    weighed_at: float
    heard_at: float | None = None
    share: float = 0.0
    zone: tzinfo | None = None
    usual: Usual = field(default_factory=Usual)
    expected_by: float | None = None
    quiet_since: float | None = None
    begun: bool = True
    changed: bool = True
    learnt: set[int] = field(default_factory=set)
    # Hours in which it was quiet. Whether they are learnt is decided when it is heard; a restart leaves them out.
    _in_doubt: list[int] = field(default_factory=list)
    _edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._expect(self.modality, self.arrivals)
        self._foresee()

    def restored(self, heard_at: float | None, share: float, weighed_at: float, quiet_since: float | None) -> None:
        """Take up where an earlier life was."""
        self.heard_at, self.share, self.weighed_at, self.quiet_since = heard_at, share, weighed_at, quiet_since
        self.begun = self.changed = False
        self._foresee()

    def begin_again(self, now: float) -> None:
        """Forget the silence that there was, and nothing of what was learnt."""
        self.share, self.weighed_at, self.quiet_since, self.changed = 0.0, now, None, True
        self._foresee()

    def expect(self, modality: Modality, arrivals: Arrivals, now: float) -> None:
        """Expect something else from now on."""
        if (arrivals, modality.quiet_hours) == (self.arrivals, self.modality.quiet_hours):
            self.modality = modality
            return
        if self.quiet_since is None:
            self._weigh(now)
        else:
            self.begin_again(now)
        self._expect(modality, arrivals)
        self._foresee()

    def _expect(self, modality: Modality, arrivals: Arrivals) -> None:
        self.modality, self.arrivals = modality, arrivals
        parts = [*modality.quiet_hours, *(hours.hours for hours in arrivals.hours if hours.hours is not None)]
        minutes = {minute % 60 for part in parts for minute in (part.start, part.end)} - {0}
        self._edges = (*(minute * 60.0 for minute in sorted(minutes)), _HOUR)

    def judge(self, look: Look, heard_at: float | None) -> None:
        """See whether it is quiet now.

        :param heard_at: when its last instance came, as far as is known
        """
        if look.unheard_since is not None:
            if self.quiet_since is None:
                self._weigh(look.unheard_since)
            self.weighed_at, self.changed = look.now, True
            self._foresee()
        if look.ended is not None:
            self._learn(look.ended, heard_at, look.now)
        if heard_at is not None and heard_at != self.heard_at:
            self._hear(heard_at, look)
        if self.quiet_since is None and self.expected_by is not None and look.now >= self.expected_by:
            self.quiet_since, self.changed = self.expected_by, True

    def _hear(self, heard_at: float, look: Look) -> None:
        # A week of nothing is a holiday or a fault, and no new habit. Less of it may be one: it is learnt from.
        if self.heard_at is not None and heard_at - self.heard_at < _WEEK:
            for hour in self._in_doubt:
                self._note(hour, heard=False)
        self._in_doubt.clear()
        self.heard_at, self.share, self.quiet_since, self.changed = heard_at, 0.0, None, True
        self.weighed_at = min(heard_at, look.now) if look.unheard_since is None else look.now
        self._foresee()

    def _learn(self, began: float, heard_at: float | None, now: float) -> None:
        local = datetime.fromtimestamp(began, self.zone)
        if self._is_exempt(local):
            return
        hour = local.weekday() * 24 + local.hour
        if any(at is not None and began <= at < began + _HOUR for at in (self.heard_at, heard_at)):
            self._note(hour, heard=True)
        elif self.quiet_since is None:
            self._note(hour, heard=False)
        elif len(self._in_doubt) < HOURS:
            self._in_doubt.append(hour)
        if local.hour == 0 and self.quiet_since is None:
            # What was learnt since it was last heard counts too: for one that is seldom heard that is much.
            self._weigh(now)
            self._foresee()

    def _note(self, hour: int, *, heard: bool) -> None:
        self.usual.learn(hour, heard)
        self.learnt.add(hour)
        self.changed = True

    # -- weighing -----------------------------------------------------------------------------------------------------

    @property
    def _tolerated(self) -> float:
        return self.usual.tolerated if self.arrivals.within is None else self.arrivals.within

    def _is_exempt(self, local: datetime) -> bool:
        minute = local.hour * 60 + local.minute
        return local.date() in self.arrivals.holidays or any(hours.covers(minute) for hours in self.modality.quiet_hours)

    def _rate(self, local: datetime) -> float:
        """What a second of silence weighs at a moment."""
        if self._is_exempt(local):
            return 0.0
        if self.arrivals.within is None:
            return self.usual.weight(local.weekday() * 24 + local.hour) / _HOUR
        weekday, minute = local.weekday(), local.hour * 60 + local.minute
        return float(not self.arrivals.hours or any(hours.covers(weekday, minute) for hours in self.arrivals.hours))

    def _stretches(self, start: float, end: float) -> Iterator[tuple[float, float, float]]:
        """Beginning, length and rate of each piece of a time in which the rate is one."""
        while start < end:
            local = datetime.fromtimestamp(start, self.zone)
            into = local.minute * 60.0 + local.second + local.microsecond / 1e6
            # A millisecond at least: the clock's last digits must not make it stand still.
            length = max(1e-3, next(edge for edge in self._edges if edge > into) - into)
            yield start, min(length, end - start), self._rate(local)
            start += length

    def _weigh(self, until: float) -> None:
        """Bring the share up to a moment."""
        tolerated = self._tolerated
        if until > self.weighed_at:
            if tolerated < math.inf:
                self.share += sum(length * rate for _, length, rate in self._stretches(self.weighed_at, until)) / tolerated
            self.weighed_at, self.changed = until, True

    def _foresee(self) -> None:
        """Find when the rest of what is tolerated will have come together."""
        if self.quiet_since is not None:
            self.expected_by = self.quiet_since
            return
        self.expected_by = None
        tolerated = self._tolerated
        if tolerated == math.inf:
            return
        rest = (1.0 - self.share) * tolerated
        for start, length, rate in self._stretches(self.weighed_at, self.weighed_at + _HORIZON):
            if rate * length >= rest:
                self.expected_by = start + max(0.0, rest) / rate if rate else start
                return
            rest -= rate * length
