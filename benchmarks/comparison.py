"""Sides measured in turn, and rows that set their figures against each other or against a bar."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.processes import Failed
from tests.peers.programs import MissingProgram

# What one run of one side gives: figures by name.
Readings = Mapping[str, float]
Measure = Callable[[], Readings]
# What all sides gave in one turn, by the name of the side.
Round = Mapping[str, Readings]

Sense = Literal["at least", "at most"]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a value is to reach, or not to exceed."""

    value: float
    sense: Sense

    def is_met_by(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value >= self.value if self.sense == "at least" else value <= self.value


def at_least(value: float) -> Bar:
    """The more the better."""
    return Bar(value, "at least")


def at_most(value: float) -> Bar:
    """The less the better."""
    return Bar(value, "at most")


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one side.

    :ivar side: which of the trial's sides
    :ivar name: which of its readings
    """

    side: str
    name: str

    def of(self, turn: Round) -> float:
        """What it was in one turn."""
        return turn[self.side][self.name]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    :ivar name: the bar's id, and after a space what tells its forms apart
    :ivar what: what is measured, with the unit of both figures
    :ivar bar: None for a row that only tells
    :ivar ours: the figure that is judged
    :ivar theirs: the figure it is set against; None when it stands for itself
    :ivar against: whether the value is ours / theirs, or ours - theirs
    :ivar peer: whose the other figure is, in words
    :ivar unit: of the value; a ratio has none
    :ivar setting: what else decides: how senders are set, how large the data is
    """

    name: str
    what: str
    bar: Bar | None
    ours: Figure
    theirs: Figure | None = None
    against: Literal["ratio", "difference"] = "ratio"
    peer: str = ""
    unit: str = ""
    setting: str = ""

    @property
    def sides(self) -> set[str]:
        """The sides that have to be measured for it."""
        return {figure.side for figure in (self.ours, self.theirs) if figure is not None}

    def value(self, turn: Round) -> float:
        """What one turn gave."""
        if self.theirs is None:
            return self.ours.of(turn)
        if self.against == "difference":
            return self.ours.of(turn) - self.theirs.of(turn)
        return self.ours.of(turn) / self.theirs.of(turn)


@dataclass(frozen=True)
class Result:
    """A row with what the turns gave.

    :ivar turns: those that count
    :ivar failure: why there is nothing to judge: a side failed
    :ivar missing: likewise: a program is not on this machine
    """

    row: Row
    turns: Sequence[Round] = ()
    failure: str = ""
    missing: str = ""

    @property
    def values(self) -> list[float]:
        """One for each turn."""
        return [self.row.value(turn) for turn in self.turns]

    @property
    def value(self) -> float:
        """Their median."""
        return statistics.median(self.values)

    @property
    def ours(self) -> float:
        """The median of our figure."""
        return statistics.median(self.row.ours.of(turn) for turn in self.turns)

    @property
    def theirs(self) -> float | None:
        """The median of the other figure, where there is one."""
        figure = self.row.theirs
        return None if figure is None else statistics.median(figure.of(turn) for turn in self.turns)

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to judge."""
        return not (self.failure or self.missing)

    @property
    def is_met(self) -> bool | None:
        """Whether the median meets the bar; None without a bar or a measurement."""
        return self.row.bar.is_met_by(self.value) if self.row.bar is not None and self.is_measured else None

    def as_json(self) -> dict[str, Any]:
        """The row, for a machine."""
        row, bar = self.row, self.row.bar
        told: dict[str, Any] = {
            "name": row.name,
            "what": row.what,
            "peer": row.peer or None,
            "setting": row.setting,
            "kind": "figure" if row.theirs is None else row.against,
            "unit": row.unit or None,
            "bar": None if bar is None else {"sense": bar.sense, "value": bar.value},
            "met": self.is_met,
            "failure": self.failure or self.missing or None,
            "runs": len(self.turns),
        }
        if self.is_measured:
            told |= {
                "value": {"median": self.value, "min": min(self.values), "max": max(self.values)},
                "ours": self.ours,
                "theirs": self.theirs,
                "values": self.values,
                "readings": [{side: dict(turn[side]) for side in sorted(row.sides)} for turn in self.turns],
            }
        return told


@dataclass(frozen=True)
class Trial:
    """Sides that are measured in turn, so that each row compares neighbours in time.

    :ivar sides: how each is measured
    :ivar rows: what is made of it; only the sides that the wanted rows need are measured
    :ivar warm_up: whether a first turn does not count
    """

    sides: Mapping[str, Measure]
    rows: Sequence[Row]
    warm_up: bool = True

    def run(self, rows: Sequence[Row], runs: int, tell: Callable[[str], None]) -> list[Result]:
        """Measure what rows need. A side that fails takes down the rows that need it, and no others.

        :param rows: some of its own
        :param runs: turns that count
        :param tell: told which side is measured now
        """
        wanted = [side for side in self.sides if any(side in row.sides for row in rows)]
        turns: list[Round] = []
        failures: dict[str, str] = {}
        missing: dict[str, str] = {}
        for number in range(runs + self.warm_up):
            turn: dict[str, Readings] = {}
            # Every other turn backwards: none is always the one that comes after another.
            for side in reversed(wanted) if number % 2 else wanted:
                if side in failures or side in missing:
                    continue
                tell(f"{rows[0].name}, turn {number + 1} of {runs + self.warm_up}: {side}")
                try:
                    turn[side] = self.sides[side]()
                except MissingProgram as absent:
                    missing[side] = str(absent)
                except (Failed, OSError, subprocess.SubprocessError) as error:
                    failures[side] = f"{side}: {error}"
            if number >= self.warm_up:
                turns.append(turn)
        results = []
        for row in rows:
            failed = "; ".join(failures[side] for side in sorted(row.sides & failures.keys()))
            absent_programs = "; ".join(missing[side] for side in sorted(row.sides & missing.keys()))
            results.append(Result(row, () if failed or absent_programs else turns, failed, absent_programs))
        return results
