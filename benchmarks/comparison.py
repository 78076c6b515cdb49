"""One row: two sides, measured in turn, and the ratio of each pair."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Measure = Callable[[], float]


@dataclass
class Comparison:
    """Ours against a peer.

    :ivar name: the bar's id, with what tells its forms apart
    :ivar what: what is measured, with its unit
    :ivar peer: against whom
    :ivar bar: the ratio to reach
    :ivar setting: what else decides: how senders are set, how large the data is
    """

    name: str
    what: str
    peer: str
    bar: float
    ours: Measure = field(repr=False)
    theirs: Measure = field(repr=False)
    setting: str = ""
    pairs: list[tuple[float, float]] = field(default_factory=list)

    def run(self, runs: int) -> None:
        """Measure both sides in turn, after one turn that does not count."""
        for number in range(runs + 1):
            pair = (self.ours(), self.theirs())
            if number:
                self.pairs.append(pair)

    @property
    def ratios(self) -> list[float]:
        """Ours by theirs, pair by pair."""
        return [ours / theirs for ours, theirs in self.pairs]

    @property
    def is_met(self) -> bool:
        """Whether the median reaches the bar."""
        return statistics.median(self.ratios) >= self.bar

    def as_json(self) -> dict[str, Any]:
        """The row, for a machine."""
        return {
            "name": self.name,
            "what": self.what,
            "peer": self.peer,
            "setting": self.setting,
            "bar": self.bar,
            "ratio": {
                "median": statistics.median(self.ratios),
                "min": min(self.ratios),
                "max": max(self.ratios),
            },
            "ours": statistics.median(ours for ours, _ in self.pairs),
            "theirs": statistics.median(theirs for _, theirs in self.pairs),
            "runs": len(self.pairs),
            "met": self.is_met,
        }
